"""``--labels`` and ``--classes``: which mask values form which class, and the names of the classes."""

from argparse import ArgumentTypeError
from collections.abc import Sequence

from meshnet.errors import UserError
from meshnet.numbers import read_number


def parse_labels(items: Sequence[str] | None) -> dict[int, int] | None:
    """``["1,2=1", "3=2"]`` → {1: 1, 2: 1, 3: 2}; without ``=CLASS`` the items are classes 1, 2, … in their order.

    So ``["1,2,3"]`` merges three values into one class and ``["1", "2"]`` keeps two apart. None stays None (everything
    > 0 is class 1). Raises UserError for another form, a value named twice, or classes that are not 1, 2, … K.
    """
    if items is None:
        return None
    labels: dict[int, int] = {}
    explicit = {"=" in item for item in items}
    if len(explicit) > 1:
        raise UserError(f"--labels: found {' '.join(items)}, expected =CLASS after every item or after none")
    for position, item in enumerate(items, 1):
        values, _, number = item.partition("=")
        try:
            numbers = [read_number(v, int) for v in values.split(",")]
            chosen = read_number(number, int) if number else position
        except ArgumentTypeError:
            raise UserError(f"--labels: found {item!r}, expected V[,V…][=CLASS] in whole numbers, e.g. 1,2=1") from None
        for value in numbers:
            if value in labels:
                raise UserError(f"--labels: found the value {value} twice, expected one class for it")
            if value == 0:
                raise UserError("--labels: found the value 0, which is always background; leave it out")
            labels[value] = chosen
    classes = sorted(set(labels.values()))
    if classes != list(range(1, len(classes) + 1)) or len(classes) > 255:
        raise UserError(f"--labels: found the classes {classes}, expected 1, 2, … without a gap, 255 at most")
    return labels


def class_names(
    labels: dict[int, int] | None, names: Sequence[str] | None, source: Sequence[str] | None
) -> list[str]:
    """Names of all classes, background first: as ``--classes`` says, else the source's, else lesion or class_1, …

    The source's names, for mask values 1, 2, …, hold for classes of one value each.
    """
    count = max(labels.values()) if labels else 1
    if names is not None:
        if len(names) != count or len({"background", *names}) != count + 1:
            raise UserError(
                f"--classes: found {' '.join(names)}, expected {count} different name(s), one for each class but the "
                "background"
            )
        return ["background", *names]
    by_class = {c: [v for v in labels if labels[v] == c] for c in set(labels.values())} if labels else {1: []}
    if source and labels and all(len(v) == 1 and 1 <= v[0] <= len(source) for v in by_class.values()):
        return ["background", *(source[by_class[c][0] - 1] for c in sorted(by_class))]
    return ["background", *(["lesion"] if count == 1 else [f"class_{c}" for c in range(1, count + 1)])]
