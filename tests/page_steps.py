"""The page's steps, run by Node."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from meshnet import ROOT
from meshnet.kernels.wasm import MODULE

STEPS = ROOT / "meshnet/sharing/page/node.js"


class Page:
    """A process of Node that answers requests (see ``node.js``). Skips the test where there is no Node."""

    def __init__(self):
        node = shutil.which("node")
        if node is None:
            pytest.skip("Node is not installed, so the page's steps are not tested")
        self.process = subprocess.Popen([node, str(STEPS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        encoding="utf-8")
        self.folder = tempfile.TemporaryDirectory()

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)
        self.folder.cleanup()

    def ask(self, what: str, **request) -> dict:
        self.process.stdin.write(json.dumps({"what": what, "engine": str(MODULE), **request}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def network(self, model, volume: np.ndarray) -> tuple[np.ndarray, dict]:
        """Probabilities (K, X, Y, Z) of a volume (C, X, Y, Z), and what else was answered."""
        given, out = Path(self.folder.name) / "volume", Path(self.folder.name) / "out"
        np.ascontiguousarray(volume).tofile(given)
        answer = self.ask("network", model=str(model), volume=str(given), shape=list(volume.shape[1:]), out=str(out))
        assert "error" not in answer, answer
        return np.fromfile(out, np.float32).reshape(-1, *volume.shape[1:]), answer
