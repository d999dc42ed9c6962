"""Puts the scripts, recipes, weights and launch configurations into the package that ``pip install .`` builds.

In a checkout they lie beside the package, where people read and run them.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SCRIPTS = ("infer.py", "prepare.py", "train.py", "search.py", "crossval.py", "share.py")
FOLDERS = ("recipes", "weights", "accelerate_configs")


class Build(build_py):
    """The package, and what it needs from around it in ``meshnet/root``."""

    def run(self) -> None:
        super().run()
        root = Path(self.build_lib) / "meshnet" / "root"
        root.mkdir(parents=True, exist_ok=True)
        for name in SCRIPTS:
            shutil.copy2(HERE / name, root / name)
        for name in FOLDERS:
            shutil.copytree(HERE / name, root / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": Build})
