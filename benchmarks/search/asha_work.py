"""What a method of benchmarks/search/asha.py has a worker train."""

from dataclasses import dataclass


@dataclass
class Work:
    """Train run ``number`` from epoch ``start`` to ``stop``; its score is wanted at the epochs ``looks``."""

    number: int
    units: list[float]
    start: int
    stop: int
    looks: tuple[int, ...] = ()
