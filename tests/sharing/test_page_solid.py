"""The 3-D view in real browsers: NiiVue comes when asked for, draws what the page has, and nothing rests on it."""

import os
import shutil
import subprocess

import nibabel as nib
import nibabel.eulerangles
import numpy as np
import pytest
from page_steps import scan

pytestmark = pytest.mark.slow
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # Chromium draws without a graphics card
WATCH = """(() => { window.broken = []; document.addEventListener("securitypolicyviolation",
    ({ effectiveDirective, blockedURI }) => broken.push([effectiveDirective, blockedURI])); })()"""
SAID = "document.getElementById('solid-said').textContent"
WAIT = """(async () => { const said = document.getElementById("solid-said"), button = document.getElementById("solid");
    while (said.textContent.includes("being made")) await new Promise((done) => setTimeout(done, 20));
    return [said.textContent, button.textContent, button.getAttribute("aria-expanded"), broken]; })()"""
THERE = """[typeof NIIVUE, typeof niivue,
    document.querySelectorAll('script[src^="blob:"], script[src="niivue.js"]').length,
    document.querySelectorAll("canvas").length]"""
# How many pixels are drawn on, how orange they are, and a sum that tells pictures apart.
DRAWN = """(() => { const { picture, canvas: { width, height } } = solid, { gl } = picture;
    picture.drawScene(); const data = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data); let drawn = 0, orange = 0, sum = 0;
    for (let i = 0; i < data.length; i += 4) {
      drawn += data[i + 1] > 40, sum = (sum * 31 + data[i]) % 1000003;
      if (data[i] > data[i + 1] && data[i + 1] > data[i + 2]) orange += data[i] - data[i + 2]; }
    return [drawn / (width * height), orange, sum]; })()"""
GRID = "[picture.volumes[0].hdr.dims.slice(1, 4), picture.volumes[0].hdr.affine, viewer.scan.affine]"
FADE = 'const o = document.getElementById("opacity"); o.value = %s; o.dispatchEvent(new Event("input"));'
CLOSED = """[solid.picture, solid.mask, document.querySelectorAll("canvas").length,
    document.getElementById("solid-place").hidden, window.kept.isContextLost()]"""


@pytest.fixture
def drawing(browser, monkeypatch):
    """A browser with WebGL 2, which Firefox has where there is a screen."""
    if browser.name == "chrome":
        yield lambda address, *steps: browser(address, *steps, flags=SOFTWARE)
        return
    if not (program := shutil.which("Xvfb")):
        pytest.skip("needs Xvfb: Firefox has no WebGL without a screen")
    read, write = os.pipe()
    screen = subprocess.Popen([program, "-displayfd", str(write), "-screen", "0", "1400x1000x24", "-nolisten", "tcp"],
                              pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        monkeypatch.setenv("DISPLAY", f":{told.readline().strip()}")
    yield lambda address, *steps: browser(address, *steps, prefs={"webgl.force-enabled": True})
    screen.terminate()
    screen.wait()


def oblique(path):
    """A scan whose axes are those of no file that lies straight: swapped, reversed, turned."""
    scan(path)
    values = np.array(nib.load(path).dataobj)
    turn = nib.eulerangles.euler2mat(0.2, 0.1, -0.15)
    affine = nib.affines.from_matvec(turn @ np.diag([-1.0, 1.2, 1.4])[[1, 0, 2]], [20, -30, 10])
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("where", ["file", "http"])
def test_a_picture_in_3d_comes_when_it_is_asked_for(drawing, place, where):
    """By keyboard; with one more of the page's own files and nothing else, and no word of the policy."""
    folder, address, asked = place
    asked.clear()
    given = {"file": (folder / "page/index.html").as_uri(), "http": address}[where]
    _, _, before, loaded, said, there, first, none, full, hidden, _, turned, _, closed, _, again, axe = drawing(
        given, ["evaluate", WATCH], ["files", str(folder / "scan.nii")], ["evaluate", THERE],
        ["press", "solid", "Enter"], ["evaluate", WAIT], ["evaluate", THERE], ["evaluate", DRAWN],
        ["evaluate", f"(() => {{ {FADE % 0} return {DRAWN}; }})()"],
        ["evaluate", f"(() => {{ {FADE % 100} return {DRAWN}; }})()"],
        ["evaluate", f"(() => {{ document.getElementById('shown').click(); return {DRAWN}; }})()"],
        ["press", "solid-canvas", "ArrowRight", "ArrowRight", "ArrowUp"], ["evaluate", DRAWN],
        ["evaluate", "(() => { window.kept = solid.picture.gl; document.getElementById('solid').click(); })()"],
        ["evaluate", f"new Promise((done) => setTimeout(() => done({CLOSED}), 300))"],
        ["press", "solid", "Enter"], ["evaluate", WAIT], ["axe"])
    assert before == ["undefined", "undefined", 0, 1] and loaded is None
    assert said[0].startswith("Drag, or use") and said[1:] == ["Close the 3-D view", "true", []], said
    assert there == ["string", "object", 2, 2]
    assert first[0] > 0.02 and full[1] > first[1] > none[1] == hidden[1], (first, none, full, hidden)
    assert turned[2] != hidden[2] and not axe, axe
    assert closed == [None, None, 1, True, True] and again[1:] == ["Close the 3-D view", "true", []]
    names = [path.lstrip("/") for _, path in asked]
    assert names.count("niivue.js") == (where == "http") and all((folder / "page" / name).is_file() for name in names)
    assert not names or names[-1] == "niivue.js"  # and after it nothing


def test_the_picture_follows_decisions_and_ends_with_its_scan(drawing, place, tmp_path):
    """A mask that becomes empty goes from it, a next scan closes it; it lies on the scan's own grid, oblique too."""
    path = oblique(tmp_path / "oblique.nii")
    _, _, _, said, grid, some, _, empty, _, closed = drawing(
        place[1], ["evaluate", WATCH], ["files", str(path)], ["press", "solid", "Enter"], ["evaluate", WAIT],
        ["evaluate", f"(() => {{ const {{ picture }} = solid; return {GRID}; }})()"], ["evaluate", DRAWN],
        ["change", "threshold", "1"], ["evaluate", DRAWN], ["files", str(place[0] / "scan.nii")],
        ["evaluate", f"[solid.isOpen, {SAID}, document.getElementById('solid').textContent]"])
    assert said[1:] == ["Close the 3-D view", "true", []]
    assert grid[0] == list(nib.load(path).shape) and np.allclose(grid[1], grid[2], atol=1e-4)
    assert some[1] > empty[1]
    assert closed == [False, "", "3-D view"]


def test_without_webgl2_it_says_so_and_the_planes_stay(browser, place):
    off = {"chrome": {"flags": ["--disable-3d-apis"]}, "firefox": {"prefs": {"webgl.disabled": True}}}[browser.name]
    _, _, _, said, there, found = browser(
        place[1], ["evaluate", WATCH], ["files", str(place[0] / "scan.nii")], ["press", "solid", " "],
        ["evaluate", WAIT], ["evaluate", THERE], ["evaluate", "[viewer.canvas.width > 200, solid.isOpen]"], **off)
    assert said[0].startswith("3-D view: this browser has no WebGL 2") and said[1:] == ["3-D view", "false", []]
    assert there == ["undefined", "undefined", 0, 1] and found == [True, False]


def test_what_it_lacks_is_said_in_a_line(drawing, place, tmp_path):
    """Without its file, then without what unpacks it, then with a graphics card that fails."""
    page = shutil.copytree(place[0] / "page", tmp_path / "page")
    kept = (page / "niivue.js").rename(tmp_path / "kept.js")
    show = ["press", "solid", "Enter"]
    _, _, _, absent = drawing((page / "index.html").as_uri(), ["evaluate", WATCH],
                              ["files", str(place[0] / "scan.nii")], show, ["evaluate", WAIT])
    assert absent[0].startswith("3-D view: niivue.js could not be loaded") and absent[1] == "3-D view"
    kept.rename(page / "niivue.js")
    fail = "Object.defineProperty(niivue.Niivue.prototype, 'attachToCanvas', { value: () => { throw Error('lost'); } })"
    *_, packed, _, _, _, _, _, _, failed, left = drawing(
        (page / "index.html").as_uri(), ["evaluate", WATCH], ["files", str(place[0] / "scan.nii")],
        ["evaluate", "(() => { window.kept = DecompressionStream; delete window.DecompressionStream; })()"], show,
        ["evaluate", WAIT], ["evaluate", "(() => { window.DecompressionStream = window.kept; })()"], show,
        ["evaluate", WAIT], show, ["evaluate", f"(() => {{ {fail}; }})()"], show, ["evaluate", WAIT],
        ["evaluate", "[document.querySelectorAll('canvas').length, solid.isOpen, page.result.volume_ml > 0]"])
    assert packed[0].startswith("3-D view: this browser cannot unpack gzip") and packed[1] == "3-D view"
    assert failed[0] == "3-D view: could not be shown (lost); use the planes above" and failed[1] == "3-D view"
    assert left == [1, False, True]
