"""The best trials once more, on validation cases and seeds that the search has not used.

The best score of a study is the largest of many noisy ones, so it is too high, and the trial that has it need not be
the best. ``--confirm k`` trains the k best trials again, from nothing to the last rung, on the inner folds that the
search did not use, each with another seed; these scores decide ``best.yaml``.

With m scores of each of k trials, the trial with the highest mean is taken. Its expected score on such folds is stated
with a 95 % interval: t with m - 1 degrees of freedom, from the variance within trials, pooled over them. Among k trials
the highest mean is still too high by luck; it is drawn towards the mean of all k by the share of noise in the
differences between them (James and Stein, 1961, in the empirical Bayes form of Efron and Morris, 1973).
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshnet.errors import OUT_OF_MEMORY, UserError
from meshnet.files import write_json, write_text
from meshnet.runs.folder import DONE, FAILED, read_metrics
from meshnet.runs.jobs import Ended, Handle, Job, Launcher, Trouble, is_retried, surroundings_of

CONFIRMED = "confirmed.json"
LEAST_RUNS = 3  # of each trial: fewer say nothing about their spread
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Repeat:
    """One run: a trial on an inner fold with a seed."""

    trial: int
    inner_fold: int
    seed: int


def planned(trials: Sequence[int], used: Sequence[int], inner_folds: int, seed: int) -> list[Repeat]:
    """The runs that confirm ``trials``: every inner fold that the search did not use (all of them where it used each),
    with seeds after the search's, as many as it takes for ``LEAST_RUNS`` of each trial."""
    folds = [fold for fold in range(inner_folds) if fold not in used] or list(range(inner_folds))
    rounds = math.ceil(LEAST_RUNS / len(folds))
    return [Repeat(trial, fold, seed + 1 + round_) for round_ in range(rounds) for fold in folds for trial in trials]


def best_finished(asha, count: int) -> list[int]:
    """The numbers of the ``count`` best trials: those of the last rung first, then of the rungs below it."""
    found: list[int] = []
    for rung in reversed(range(len(asha.rungs))):
        ranked = sorted(entry for bracket in asha.finished for entry in bracket[rung] if entry[0] < math.inf)
        found += [number for _, number in ranked if number not in found]
    return found[:count]


def searched_score(trial) -> float:
    """The score of a trial at the highest rung where it has a real one."""
    return [score for _, score in sorted(trial.scores.items()) if math.isfinite(score)][-1]


# ---------------------------------------------------------------------- what the scores say
def conclude(scores: Mapping[int, Sequence[float]], maximize: bool) -> dict:
    """Which trial is best, and what to expect of it.

    Args:
        scores: by trial, the same number (at least 2) on the same folds in the same order.
        maximize: whether a higher score is better.

    Returns:
        ``trial``, its ``score`` and the interval ``low`` to ``high``.
    """
    from scipy.special import stdtrit

    count = len(next(iter(scores.values())))
    means = {trial: statistics.fmean(values) for trial, values in scores.items()}
    best = (max if maximize else min)(means, key=means.get)
    within = statistics.fmean(statistics.variance(values) for values in scores.values())
    grand = statistics.fmean(means.values())
    kept = 1.0
    if len(scores) > 1:
        kept = 1 - min(1.0, unshared(scores, means, grand, count) / count / max(statistics.variance(means.values()),
                                                                                1e-300))
    score = grand + kept * (means[best] - grand)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(within / count)
    return {"trial": best, "score": score, "low": score - half, "high": score + half}


def unshared(scores: Mapping[int, Sequence[float]], means: Mapping[int, float], grand: float, count: int) -> float:
    """The variance of a score without what its fold gives to all trials alike: the residual of the two-way table."""
    folds = [statistics.fmean(values[run] for values in scores.values()) for run in range(count)]
    squares = sum((values[run] - means[trial] - folds[run] + grand) ** 2
                  for trial, values in scores.items() for run in range(count))
    return squares / ((len(scores) - 1) * (count - 1))


# ---------------------------------------------------------------------- the runs
@dataclass
class Confirmation:
    """The runs of ``--confirm`` while they are carried out. Call ``step`` until it returns True.

    folder: of the study. arguments: of train.py for every run. recipe: the text of a trial's recipe. epochs: where each
    run ends. metric, maximize: as in the study. What is done is read from the run folders, so it can be stopped at any
    time and goes on with the same call.
    """

    folder: Path
    repeats: Sequence[Repeat]
    launcher: Launcher
    arguments: tuple[str, ...]
    recipe: Callable[[int], str]
    epochs: int
    metric: str
    maximize: bool
    max_retries: int = 3
    silent_after: float = 600.0
    script: str = "train.py"
    say: Callable[[str], None] = print
    check: Callable[[], None] = lambda: None  # before each run: ends the command where it must not go on
    scores: dict[Repeat, float] = field(default_factory=dict)  # of finished runs
    running: dict[str, Repeat] = field(default_factory=dict)
    failures: dict[Repeat, int] = field(default_factory=dict)
    trouble: Trouble = field(default_factory=Trouble)

    def run_dir(self, repeat: Repeat) -> Path:
        """The run folder."""
        return self.folder / "confirm" / f"{repeat.trial:05d}" / f"fold{repeat.inner_fold}-seed{repeat.seed}"

    def score(self, repeat: Repeat) -> float | None:
        """The best value of the metric in a finished run; None while it is not finished, NaN where it diverged or was
        out of memory."""
        if repeat not in self.scores and (found := self._read(repeat)) is not None:
            self.scores[repeat] = found
        return self.scores.get(repeat)

    def _read(self, repeat: Repeat) -> float | None:
        folder = self.run_dir(repeat)
        if (folder / FAILED).exists():
            return math.nan
        rows = read_metrics(folder)[: self.epochs]
        if len(rows) < self.epochs and not (folder / DONE).exists():
            return None
        values = [row[self.metric] for row in rows if row.get(self.metric) is not None]
        return (max if self.maximize else min)(filter(math.isfinite, values), default=math.nan)

    def step(self) -> bool:
        """Handle runs that ended and start others; True when all are done. Never waits."""
        for ended in self.launcher.poll():
            self._handle_end(ended)
        left = [one for one in self.repeats if one not in self.running.values() and self.score(one) is None]
        while left and self.launcher.free() > 0 and not self.trouble.waits():
            self._start(left.pop(0))
        return not left and not self.running

    def _start(self, repeat: Repeat) -> Handle:
        self.check()
        folder = self.run_dir(repeat)
        path = folder.parent / f"recipe-epochs{self.epochs}.yaml"
        if not path.exists():
            write_text(path, self.recipe(repeat.trial))
        flags = ("--recipe", str(path), "--inner_fold", str(repeat.inner_fold), "--seed", str(repeat.seed), "--run_dir",
                 str(folder), "--stop_epoch", str(self.epochs), *self.arguments)
        handle = self.launcher.submit(Job(self.script, flags, folder, folder / "output.log", self.silent_after))
        self.running[handle.token] = repeat
        return handle

    def _handle_end(self, ended: Ended) -> None:
        repeat = self.running.pop(ended.handle.token)
        name = f"trial {repeat.trial}, inner fold {repeat.inner_fold}, seed {repeat.seed}"
        if (score := self.score(repeat)) is not None:
            self.trouble.over()
            self.say(f"{name}: {self.metric} {score:.4f}")
            return
        if line := surroundings_of(ended):
            seconds = self.trouble.add(ended.handle.since, line)
            self.say(f"{name}: ended, not by its own fault: {line}; tried again in {seconds:.0f} s")
            return
        if ended.code == OUT_OF_MEMORY:
            self.scores[repeat] = math.nan
            self.say(f"{name}: out of memory; its trial is not confirmed")
            return
        self.failures[repeat] = self.failures.get(repeat, 0) + 1
        reason = ended.reason or "ended before its last epoch"
        if not is_retried(ended.code, self.failures[repeat], self.max_retries):
            raise UserError(f"{ended.handle.job.log}: the run that confirms {name} failed ({reason}); expected it to "
                            "end as its trial did: look at the end of that file, then run the same command again")
        self.say(f"{name}: {reason}; it continues from its last resume point")

    # ------------------------------------------------------------------ the outcome
    def outcome(self, searched: Mapping[int, float]) -> dict | None:
        """What ``confirmed.json`` holds; None where no trial has only real scores. ``searched``: the search's scores by
        trial."""
        scores: dict[int, list[float]] = {}
        for repeat in self.repeats:
            scores.setdefault(repeat.trial, []).append(self.score(repeat))
        real = {trial: values for trial, values in scores.items() if all(map(math.isfinite, values))}
        if not real:
            return None
        found = conclude(real, self.maximize)
        return found | {
            "metric": self.metric, "epochs": self.epochs, "searched": searched[found["trial"]],
            "confidence": CONFIDENCE,
            "trials": [{"trial": trial, "searched": searched[trial], "runs": [
                {"inner_fold": repeat.inner_fold, "seed": repeat.seed, "score": self.score(repeat)}
                for repeat in self.repeats if repeat.trial == trial]} for trial in scores]}

    def write(self, searched: Mapping[int, float]) -> dict | None:
        """Write ``confirmed.json`` into the study folder; returns what it holds."""
        found = self.outcome(searched)
        if lost := sorted({repeat.trial for repeat in self.repeats if not math.isfinite(self.score(repeat))}):
            self.say(f"not confirmed, since a run of theirs failed: trials {', '.join(map(str, lost))}")
        if found is not None:
            write_json(self.folder / CONFIRMED, found)
        return found


def read_confirmed(folder: Path) -> dict | None:
    """``confirmed.json`` of a study folder; None where there is none."""
    path = folder / CONFIRMED
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        raise UserError(f"{path}: not readable as JSON; delete it, search.py --confirm writes it again") from None


def in_words(found: Mapping) -> str:
    """The outcome in one line."""
    return (f"confirmed: trial {found['trial']}, {found['metric']} {found['score']:.4f} "
            f"({found['low']:.4f} to {found['high']:.4f}, 95 %) on other inner folds and seeds; "
            f"the search itself had {found['searched']:.4f}")
