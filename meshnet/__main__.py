"""One command for all scripts: ``meshnet segment scan.nii.gz`` runs ``infer.py scan.nii.gz``, and so on.

``pip install .`` puts it on the path; from a checkout it is ``python -m meshnet``. See docs/installing.md.
"""

import runpy
import sys

from meshnet import ROOT, __version__

VERBS = {
    "segment": ("infer.py", "scans into lesion masks, volumes and pictures"),
    "prepare": ("prepare.py", "scans and masks into a data set for training"),
    "train": ("train.py", "one network"),
    "search": ("search.py", "hyperparameters"),
    "crossval": ("crossval.py", "recipes against each other, with a report"),
    "share": ("share.py", "models and data sets: Hugging Face Hub, ONNX, brainchop"),
}
OTHERWISE = {  # what people call a verb, and what to type; flags.OTHERWISE has more
    **dict.fromkeys(("export", "publish", "upload", "push", "pull", "download", "web", "onnx", "tfjs", "import",
                     "convert"), "share"),
    **dict.fromkeys(("test", "score"), "train --test"),
    **dict.fromkeys(("finetune", "fine-tune"), "train --init"),
    **dict.fromkeys(("validate", "validation", "evaluate", "eval", "compare", "benchmark", "report"), "crossval"),
    **dict.fromkeys(("sweep", "optimize", "optimise", "hpo"), "search"),
    **dict.fromkeys(("preprocess", "conform", "dataset", "data"), "prepare"),
    **dict.fromkeys(("run", "mask", "apply"), "segment"),
}
USAGE = "usage: meshnet VERB ...\n\n" + "".join(f"  {verb:<10} {what}\n" for verb, (_, what) in VERBS.items()) + """
meshnet VERB --help lists the flags of a verb; meshnet completion bash prints a script that completes them in the shell.
Research software, not for diagnosis."""


def main() -> int:
    """Run the script of a verb with the rest of the command line."""
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in ("--help", "-h"):
        print(USAGE)
        return 0
    if given == "--version":
        print(f"meshnet {__version__}")
        return 0
    if given == "completion":
        from meshnet.completion import script_for
        from meshnet.errors import run_script

        shell = sys.argv[2] if len(sys.argv) > 2 else ""
        run_script(lambda: print(script_for(shell, VERBS), end=""))
    if given not in VERBS:
        from meshnet.colours import open_streams
        from meshnet.flags import alike

        like = [OTHERWISE[given]] if given in OTHERWISE else alike(given, VERBS)
        meant = f"; did you mean {like[0]}?" if like else ""
        open_streams()
        print(f"error: found verb '{given}', expected one of {', '.join(VERBS)}{meant}", file=sys.stderr)
        return 2
    script = str(ROOT / VERBS[given][0])
    sys.argv = [script, *sys.argv[2:]]
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
