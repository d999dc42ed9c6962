"""How jobs are started: commands, environments, and slots with GPUs, which here are in the environment alone."""

import os
import sys
import textwrap

import pytest
from stand_in import wait_for

from meshnet.errors import UserError
from meshnet.runs import command
from meshnet.runs.command import MANY_GPUS, QUIETLY, job_command, job_environment, visible_gpus
from meshnet.runs.launch import make_launcher


def test_no_gpu_or_one_is_a_plain_process_and_several_go_by_accelerate_launch(job):
    one = job("x", "")
    plain = [sys.executable, one.script, *one.arguments]
    assert job_command(one, 0, None) == job_command(one, 1, "gpu.yaml") == plain
    assert job_command(job("x", "", alone=True), 2, None) == plain  # scoring, on the first GPU of the slot
    many = [job_command(one, 2, given) for given in (None, "/own.yaml")]
    assert all(found[1:4] == [str(QUIETLY), "accelerate", "launch"] and found[-2:] == plain[1:] for found in many)
    assert [found[found.index("--config_file") + 1] for found in many] == [str(MANY_GPUS), "/own.yaml"]


def test_accelerate_launch_takes_these_flags_and_each_job_a_port_of_its_own(job):
    """The flags are accelerate's own: its parser accepts them."""
    from accelerate.commands.launch import launch_command_parser

    parsed = [launch_command_parser().parse_args(job_command(job("x", ""), 2, None)[4:]) for _ in range(2)]
    assert (parsed[0].num_processes, parsed[0].num_machines, parsed[0].multi_gpu) == (2, 1, True)
    assert parsed[0].gpu_ids == "all" and parsed[0].main_process_port > 0


def test_the_projects_configurations_load(root):
    from accelerate.commands.config.config_args import load_config_from_file

    for path in sorted((root / "accelerate_configs").glob("*.yaml")):
        assert load_config_from_file(str(path)).num_processes >= 1, path
    assert command.precision_of(root / "accelerate_configs/one_gpu_fp16.yaml") == "fp16"
    assert command.precision_of(MANY_GPUS) is None  # training.precision decides


@pytest.mark.parametrize("given, found", [
    ({"CUDA_VISIBLE_DEVICES": "0, 3,GPU-1f"}, ["0", "3", "GPU-1f"]), ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, []), ({"CUDA_VISIBLE_DEVICES": "0", "ACCELERATE_USE_CPU": "true"}, [])])
def test_gpus_that_may_be_used(monkeypatch, given, found):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert visible_gpus() == found


def test_a_job_inherits_no_process_group_and_takes_its_precision_from_the_file(job, monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    config = tmp_path / "own.yaml"
    config.write_text("distributed_type: 'NO'\nmixed_precision: bf16\n")
    found = job_environment(job("x", ""), "t", 3, str(config))
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & found.keys()
    assert (found["MESHNET_JOB"], found["OMP_NUM_THREADS"], found["ACCELERATE_MIXED_PRECISION"]) == ("t", "3", "bf16")
    assert found.items() > {name: value for name, value in os.environ.items() if name.startswith("PATH")}.items()
    config.write_text("distributed_type: 'NO'\nmixed_precision: 'no'\n")
    assert "ACCELERATE_MIXED_PRECISION" not in job_environment(job("x", ""), "t", 3, str(config))


@pytest.mark.parametrize("text, words", [(None, "--accelerate_config: found no file"), ("- a list", "found a list"),
                                         ("{", "own.yaml")])
def test_a_configuration_that_cannot_be_read_is_refused_before_anything_starts(tmp_path, text, words):
    path = tmp_path / "own.yaml"
    if text:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        make_launcher("local", accelerate_config=str(path))


SCRIPT = """
    import os, sys, time
    sys.path.insert(0, {root!r})
    from meshnet.errors import Diverged, Surroundings, UserError, run_script
    def main():
        words = os.environ["CUDA_VISIBLE_DEVICES"], str(os.environ.get("ACCELERATE_MIXED_PRECISION"))
        os.write(1, (" ".join(words) + chr(10)).encode())  # at once: two processes write to one file
        {main}
    run_script(main)
"""
ENDS = {"good": ("return 0", 0, ""), "fault": ("raise ValueError('seven')", 1, "ValueError: seven"),
        "wrong": ("raise UserError('--fold: found 9')", 2, "--fold: found 9"),
        "nan": ("raise Diverged('the loss is nan')", 3, "the loss is nan"),
        "away": ("raise Surroundings('data: away')", 4, "data: away"),
        "full": ("raise MemoryError('all of it')", 5, "out of memory (all of it)")}


def run_jobs(launcher, jobs):
    """How each of some jobs ended, by name."""
    ended = {}
    for one in jobs:
        launcher.submit(one)
    wait_for(lambda: [ended.update({end.handle.job.run_dir.name: end for end in launcher.poll()}),
                      launcher.running()][1] == [], seconds=300)
    return ended


def test_exit_codes_and_last_lines_of_slots_with_one_gpu(job, root, monkeypatch):
    """As with accelerate launch above them they never did."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    script = textwrap.dedent(SCRIPT)
    ended = run_jobs(make_launcher("local"), [job(name, script.format(root=str(root), main=main))
                                              for name, (main, _, _) in ENDS.items()])
    for name, (_, code, line) in ENDS.items():
        assert ended[name].code == code and ended[name].line.startswith(line), name
        assert ended[name].line or code == 0
    said = {ended[name].handle.job.log.read_text().splitlines()[0] for name in ENDS}
    assert said == {f"{slot} None" for slot in range(6)}


BY_RANK = 'if os.environ["LOCAL_RANK"] == "1": {first}\n    time.sleep(0 if {quick} else 60); {then}'


@pytest.mark.parametrize("first, quick, then, code, line", [
    ("raise Diverged('the loss is nan')", 0, "pass", 3, "the loss is nan"),  # the other is ended by the launcher
    pytest.param("raise UserError('--fold')", 1, "time.sleep(1); raise Surroundings('lost')", 2, "--fold",
                 marks=pytest.mark.slow),  # as what the others say of a connection that is gone
    pytest.param("raise ValueError('seven')", 0, "pass", 1, "ValueError: seven", marks=pytest.mark.slow),
    pytest.param("os.kill(os.getpid(), 7)", 0, "pass", -7, "", marks=pytest.mark.slow),
    pytest.param("return", 1, "return", 0, "", marks=pytest.mark.slow),
])
def test_a_slot_of_two_gpus_ends_as_its_first_process_and_knows_no_default_config(
        job, root, monkeypatch, tmp_path, first, quick, then, code, line):
    config = tmp_path / "home" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\ngpu_ids: '7'\n"
                      "mixed_precision: fp16\nnum_processes: 1\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    main = BY_RANK.format(first=first, quick=quick, then=then)
    ended = run_jobs(make_launcher("local", gpus_per_worker=2),
                     [job("two", textwrap.dedent(SCRIPT).format(root=str(root), main=main))])["two"]
    output = ended.handle.output()
    assert (ended.code, output.count("2,5 no\n")) == (code, 2), output
    assert line in ended.line


TRAIN = """
    import os, runpy, sys
    print("slot", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    os.environ["ACCELERATE_USE_CPU"] = "1"  # there is no such GPU
    sys.path.insert(0, {root!r})
    sys.argv[1:] = {flags!r}
    runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_real_runs_in_slots_with_one_gpu_end_as_on_a_cpu(job, root, monkeypatch, tiny_data, tmp_path):
    """Codes 0, 2 and 3 with their last lines; the precision is the file's, and is recorded."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    flags = {"good": ["--training.max_epochs", "1"], "wrong": ["--training.batch_size", "0"],
             "nan": ["--optimizer.lr", "1e30", "--model.norm", "none", "--training.max_epochs", "3"]}

    def jobs():
        for name, own in flags.items():
            given = ["--data", str(tiny_data), "--run_dir", str(tmp_path / name), "--model.channels", "3",
                     "--model.dilations", "1", "2", "--data.workers", "0", *own]
            yield job(name, textwrap.dedent(TRAIN).format(root=str(root), flags=given))

    config = tmp_path / "bf16.yaml"
    config.write_text("distributed_type: 'NO'\nmixed_precision: bf16\n")
    ended = run_jobs(make_launcher("local", accelerate_config=str(config)), list(jobs()))
    assert {name: end.code for name, end in ended.items()} == {"good": 0, "wrong": 2, "nan": 3}
    assert "training.batch_size: found 0" in ended["wrong"].line
    assert "the last resume point is kept" in ended["nan"].line
    assert "precision: bf16" in (tmp_path / "good" / "config.yaml").read_text()
    said = sorted(end.handle.output().splitlines()[0] for end in ended.values())
    assert said == ["slot 0", "slot 1", "slot 2"]
    text = (root / "accelerate_configs/one_gpu_fp16.yaml").as_posix()
    again = run_jobs(make_launcher("local", accelerate_config=text), [next(jobs())])["good"]
    assert again.code == 0 and "already finished" in again.handle.output()  # in the precision that it began in
