"""The page in real browsers: a scan in, the mask out, nothing leaves, bad files, keyboard, accessibility."""

import base64
import functools
import gzip
import json
import os
import shutil
import socket
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from page_steps import Page, bad_files, model_of, scan

from meshnet import ROOT
from meshnet.sharing.to_web import write_page

pytestmark = pytest.mark.slow
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


def content(saved):
    return gzip.decompress(base64.b64decode(saved["content"]))


@pytest.mark.parametrize("where", ["file", "http", "isolated"])
def test_a_scan_becomes_the_mask_of_node(browser, place, where):
    folder, address, asked = place
    with Page() as page:
        page.ask("segment", model=str(folder / "model"), scans=[str(folder / "scan.nii")],
                 mask=str(folder / "mask.nii"), probability=str(folder / "probability.nii"), settings={})
    asked.clear()
    heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.bind(("127.0.0.1", 0))
    heard.setblocking(False)
    given = {"file": (folder / "page/index.html").as_uri(), "http": address, "isolated": f"{address}?isolated"}[where]
    found, threads, mask, probability, png, report, less, none, leave = browser(
        given, ["files", str(folder / "scan.nii")],
        ["evaluate", "[window.page.threads, self.crossOriginIsolated, navigator.hardwareConcurrency]"],
        ["save", "save-mask"], ["save", "save-probability"], ["save", "save-picture"], ["save", "save-json"],
        ["change", "threshold", "0.51"], ["change", "threshold", "1"],
        ["leave", address.replace("index.html", "planted").replace("127.0.0.1", "localhost"),  # another origin
         heard.getsockname()[1]])
    assert found["states"] == ["done"] and "mL in" in found["answer"]
    assert threads[:2] == ([min(8, threads[2]), True] if where == "isolated" else [1, False])
    assert content(mask) == (folder / "mask.nii").read_bytes() and mask["name"] == "scan_lesion.nii.gz"
    expected, got = (np.frombuffer(each[352:], np.float32) for each in
                     ((folder / "probability.nii").read_bytes(), content(probability)))
    assert np.abs(expected - got).max() < 1e-6  # the engines of browsers may round exp differently
    assert base64.b64decode(png["content"])[:4] == b"\x89PNG"
    assert json.loads(base64.b64decode(report["content"]))["volume_ml"] == found["report"]["volume_ml"] > 0
    assert less != found["answer"] and "no lesion" in none
    assert not [way for way, how in leave["tried"].items() if how == "sent"], leave
    assert {"connect-src", "img-src", "form-action"} <= set(leave["refused"])
    with heard, pytest.raises(BlockingIOError):  # nothing came by WebRTC
        heard.recv(100)
    opened = ("GET", "/planted?opened")
    assert opened in asked, "a policy governs this now: the page and docs/browser.md can say more"
    asked[:] = [one for one in asked if one != opened]
    names = {path.lstrip("/").removesuffix("?isolated") for _, path in asked}
    assert names <= {path.name for path in (folder / "page").iterdir()}, names  # nothing planted arrived


def test_bad_files_are_a_line_each_and_the_page_goes_on(browser, place, tmp_path):
    folder, address, _ = place
    files = bad_files()
    for name, bytes_ in files.items():
        (tmp_path / name).write_bytes(bytes_)
    found, text = browser(address, ["files", *[str(tmp_path / name) for name in files], str(folder / "scan.nii")],
                          ["evaluate", "document.getElementById('errors').innerText"])
    assert found["states"] == ["refused"] * len(files) + ["done"] and len(files) >= 40
    for name, error in zip(files, found["errors"]):
        assert error.startswith(f"{name}: ") and "\n" not in error and "report this" not in error, error
    assert len([line for line in text.splitlines() if line.strip()]) == len(files)


def test_gzip_of_several_members_and_with_zeros_after_it(browser, place, tmp_path):
    """As bgzip writes it, or ``cat a.gz b.gz``: infer.py reads it, and what browsers unpack themselves ends with the
    first member."""
    folder, address, _ = place
    plain = (folder / "scan.nii").read_bytes()
    parts = {"several": [plain[:5000], plain[5000:]], "padded": [plain], "both": [plain[:100], plain[100:], b""]}
    for name, each in parts.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(b"".join(map(gzip.compress, each)) + bytes(512 * (name != "several")))
    whole, found, mask = browser(address, ["files", str(folder / "scan.nii")],
                                 ["files", *[str(tmp_path / f"{name}.nii.gz") for name in parts]],
                                 ["save", "save-mask"])
    assert found["states"] == ["done"] * 4, found["errors"]
    with Page() as page:
        page.ask("segment", model=str(folder / "model"), scans=[str(folder / "scan.nii")],
                 mask=str(tmp_path / "mask.nii"), settings={})
    assert content(mask) == (tmp_path / "mask.nii").read_bytes()
    assert found["report"]["volume_ml"] == whole["report"]["volume_ml"] > 0


def test_dicom_files_are_segmented_where_they_lie(browser, place, tmp_path):
    """Two series given as files, one in a dropped folder: nothing of dcm2niix is loaded before, and the mask is that of
    the converted scan."""
    pytest.importorskip("pydicom", reason="pip install -r requirements-dicom.txt")
    from made_up_dicom import write_series

    folder, address, asked = place
    write_series(tmp_path / "a", "oblique", 3, "t2_tse_tra", size=40)
    write_series(tmp_path / "b", "axial", 4, "localizer", slices=9, size=16)
    both = sorted(str(path) for part in "ab" for path in (tmp_path / part).iterdir())
    with Page() as page:
        page.ask("dicom", files=both, channels=["T2w"], convert=[3], out=str(tmp_path / "scan"))
        answer = page.ask("segment", model=str(folder / "model"), scans=[str(tmp_path / "scan.3.nii")],
                          mask=str(tmp_path / "mask.nii"), settings={})
    asked.clear()
    first, loaded, many, mask, one, missing = browser(
        address, ["files", str(folder / "scan.nii")], ["evaluate", "typeof DCM2NIIX"], ["dicom", False, *both],
        ["save", "save-mask"], ["dicom", True, *both[:40]],
        ["evaluate", "(async () => { await take([Object.assign(new File(['x'], 'a.txt'), { inFolder: true })]); "
                     "return document.getElementById('errors').textContent; })()"])
    assert first["states"] == ["done"] and loaded == "undefined"
    assert many["asked"] == ["3: t2_tse_tra (T2w, 40 slices)"] and many["states"][1:] == ["done"], many
    assert content(mask) == (tmp_path / "mask.nii").read_bytes() and mask["name"] == "series-003_lesion.nii.gz"
    assert f"{answer['volume_ml']:.2f} mL in" in many["answer"]
    assert one["asked"] is None and one["states"][2:] == ["done"] and one["answer"] == many["answer"], one
    assert "found no scan in this folder" in missing
    assert sum("dcm2niix.js" in path for _, path in asked) == 1


def test_without_webgl_and_with_too_little_memory(browser, place, tmp_path):
    """The page draws on a 2-D canvas, so WebGL is no matter; a lack of memory is a line, and the page goes on."""
    folder, address, _ = place
    hungry = "WORKER_SOURCE.replace('if (!at) throw', 'throw')"
    found, shown = browser(
        address, ["files", str(folder / "scan.nii")],
        ["evaluate", "(() => { const c = document.getElementById('canvas'), d = c.getContext('2d').getImageData(0, 0, "
                     "c.width, c.height).data; let n = 0; for (let i = 0; i < d.length; i += 4) "
                     "if (d[i] > d[i + 2] + 60) ++n; return n; })()"],
        flags=["--disable-webgl", "--disable-3d-apis"], prefs={"webgl.disabled": True})
    assert found["states"] == ["done"] and shown > 20  # of the mask's colour
    page = tmp_path / "hungry"
    shutil.copytree(folder / "page", page)
    text = (page / "page.js").read_text(encoding="utf-8")
    assert "[WORKER_SOURCE]" in text
    given = f"[state.cases.length ? WORKER_SOURCE : {hungry}]"
    (page / "page.js").write_text(text.replace("[WORKER_SOURCE]", given), encoding="utf-8")
    first, second = browser((page / "index.html").as_uri(), ["files", str(folder / "scan.nii")],
                            ["files", str(folder / "scan.nii")])
    assert first["states"] == ["refused"] and "out of memory" in first["errors"][0]
    assert second["states"] == ["refused", "done"]


def test_keyboard_and_accessibility(browser, place):
    folder, address, _ = place
    empty, _, full, keys = browser(address, ["axe"], ["files", str(folder / "scan.nii")], ["axe"], ["keyboard"])
    assert not empty and not full, (empty, full)
    assert {"files", "canvas", "threshold", "smallest", "save-mask", "save-json"} <= set(keys["reached"])
    assert keys["places"][0] != keys["places"][1]


def test_fits_every_screen(browser, place, tmp_path):
    folder, address, _ = place
    _, *wide = browser(address, ["files", str(folder / "scan.nii")],
                       *[["picture", str(tmp_path / f"{n}.png"), *size] for n, size in enumerate(
                           ([1280, 900, False], [640, 450, True], [360, 740, True]))])
    assert wide == [0, 0, 0]  # nothing sticks out; 640 is 1280 at 200 % zoom
