"""A signal before a time limit: a resume point after the step, and the same run in the end."""

import os
import signal

import pytest
from training_runs import RICH, assert_same_run, train

from meshnet.training import loop


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_bit_for_bit(number, undisturbed, tiny_data, tmp_path,
                                                                       monkeypatch):
    folder, batches, one = tmp_path / "run", [], loop.train_batch

    def train_batch(run, batch, **options):
        batches.append(batch)
        if len(batches) == 1:  # within the first of the two batches of a step
            os.kill(os.getpid(), number)
        return one(run, batch, **options)

    monkeypatch.setattr(loop, "train_batch", train_batch)
    flags = (*RICH, "--training.keep_states", 50, "--training.save_every_steps", 0)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    found = train(tiny_data, folder, *flags, check=False)
    assert found.returncode == 128 + number and f"interrupted by {number.name}" in found.stderr
    assert "stopping" not in found.stdout + found.stderr  # one line says it
    assert {number: signal.getsignal(number) for number in before} == before
    assert len(batches) == 2 and [path.name for path in (folder / "state").iterdir()] == ["step-00000001.pt"]
    assert not (folder / "metrics.jsonl").read_text()
    monkeypatch.setattr(loop, "train_batch", one)
    found = train(tiny_data, folder, *flags)
    assert "continuing after epoch 0, step 1" in found.stdout
    assert_same_run(folder, undisturbed)
