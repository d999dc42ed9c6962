"""A page, its scans, and the real browsers that open it."""

import functools
import json
import os
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cascades import head_file, write_cascade
from page_steps import model_of, scan

from meshnet import ROOT
from meshnet.scans.contrast import CONTRASTS
from meshnet.sharing.to_web import write_page

FOLDER = ROOT / "tests/browser"
PROGRAMS = {"chrome": ("chromium", "google-chrome"), "firefox": ("firefox-esr", "firefox")}


@pytest.fixture(params=["chrome", "firefox"])
def browser(request):
    program = next(filter(None, map(shutil.which, PROGRAMS[request.param])), None)
    modules = [folder for folder in (FOLDER / "node_modules", *map(Path, os.environ.get("NODE_PATH", "").split(":")))
               if (folder / "puppeteer-core").is_dir()]
    if program is None or not modules or not shutil.which("node"):
        pytest.skip(f"needs {request.param}, Node, and npm install in {FOLDER}")

    def drive(address, *steps, **more):
        wanted = {"browser": request.param, "program": program, "address": address, "do": steps, **more}
        done = subprocess.run(["node", str(FOLDER / "drive.js"), json.dumps(wanted)], capture_output=True, text=True,
                              encoding="utf-8", check=False, timeout=900,
                              env={**os.environ, "NODE_PATH": str(modules[0])})
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert found and found[-1] == {"step": "end", "found": []}, (done.stdout[-2000:], done.stderr[-2000:])
        return [one["found"] for one in found[:-1]]

    drive.name = request.param
    return drive


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A page of a small model, a scan, and the page's folder on a web server that notes what is asked of it."""
    folder = tmp_path_factory.mktemp("place")
    model_of(folder / "model", "instance", min_lesion_mm3=300, shifted=True, averaged=True, centre="middle")
    write_page(folder / "model", folder / "page")
    scan(folder / "scan.nii")
    learned = {name: {"quality": {"marked": [0.1, -0.2, 0.3, -0.5, 0.4], "empty": [0.3, -0.2, 0.1]}}
               for name in CONTRASTS}
    write_page(write_cascade(folder / "cascade", contrasts=learned), folder / "page/cascade")  # a page in the page
    (folder / "head").mkdir()
    head_file(folder / "head/scan.nii")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append((self.command, self.path))

        def end_headers(self):
            if self.path.endswith("?isolated"):  # with the headers that a Space's card asks for
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def do_GET(self):
            if not self.path.endswith("?opened"):
                return super().do_GET()
            self.send_response(204)
            return self.end_headers()

        def do_POST(self):
            asked.append(("POST", self.path))

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder / "page")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/index.html", asked
    server.shutdown()


@pytest.fixture(scope="module")
def several(place):
    """Four scans of different size."""
    folder = place[0]
    return [str(scan(folder / f"s{i}.nii", (40 + 2 * i, 44, 36), seed=i)) for i in range(4)]
