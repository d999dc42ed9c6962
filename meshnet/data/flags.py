"""Flags of prepare.py that belong to one kind of data set."""

from argparse import ArgumentParser


def add_corrections(p: ArgumentParser) -> None:
    """A flag for each thing that is otherwise taken from names; ``--list`` prints what was."""
    g = p.add_argument_group("where names mislead")
    g.add_argument("--image_pattern", metavar="GLOB", help="only scans whose path in the data set, or name, is like "
                   "this, such as '*_acq-space_*'")
    g.add_argument("--mask_pattern", metavar="GLOB", help="only masks whose path or name is like this; bids: these are "
                   "the lesion masks, whatever their names and JSON files say; hub: the column of the masks")
    g.add_argument("--same", action="append", default=[], metavar="ENTITY=ENTITY",
                   help="bids: a mask's entity has the value of another one of its scan, such as space=rec or "
                        "space=suffix; ENTITY=none: it is not compared")
    g.add_argument("--subject", metavar="PATTERN|CSV", help="which part of a case's name is the patient, as a regular "
                   "expression ('pat(\\d+)_'), or a table with the columns case and subject")
    g.add_argument("--apart", action="store_true", help="fold by subject alone, even where subjects have the same scan "
                   "or their names look like time points of one patient")


def add_synthetic(p: ArgumentParser) -> None:
    """What synthetic cases are made of."""
    g = p.add_argument_group("synthetic")
    g.add_argument("--cases", type=int, default=12, help="how many (default 12)")
    g.add_argument("--synthetic_seed", type=int, default=0, help="another gives other cases (default 0)")
    g.add_argument("--synthetic_preset", default="demo", metavar="NAME",
                   help="how much they vary: demo, train, bright, bright_fluid or every")
    g.add_argument("--anatomy", metavar="FOLDER", help="whole-head label maps to make heads from: FreeSurfer's labels, "
                   "or those of a table tissues.yaml beside them (default: one mean head)")
    g.add_argument("--lesions", nargs="+", default=[], metavar="FOLDER", help="lesion masks in MNI space to take "
                   "lesions from (default: made up); needs --anatomy")
