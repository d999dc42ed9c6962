"""A study of made-up scores, at random, without a training."""

import math

from meshnet.search.asha import Asha
from meshnet.search.sampler import RandomSampler
from meshnet.search.space import parse_space

SPACE = parse_space({"lr": "loguniform(1e-4, 1)", "bg_weight": "uniform(0, 1)",
                     "warmup_pct": "choices([0.02, 0.1, 0.2])"})


def truth(parameters: dict) -> float:
    """The score at the last rung: the learning rate decides, the background a little, the rest nothing."""
    return 0.8 - 0.1 * (math.log10(parameters["lr"]) + 2) ** 2 - 0.1 * (parameters["bg_weight"] - 0.3) ** 2


def play(trials: int, score, maximize: bool = True) -> Asha:
    study, sampler = Asha((1, 2, 4), 2, trials, maximize), RandomSampler(SPACE, 0)
    while (job := study.next_decision(lambda number: sampler.suggest(number, study))) is not None:
        study.report(job.trial, score(study.trials[job.trial].parameters, job.epochs))
    return study
