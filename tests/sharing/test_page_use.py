"""What a user finds in the page: keys, names, times, sizes of screens, and no violation of accessibility."""

import base64
import json
import re
import shutil

import pytest
from page_steps import scan

pytestmark = pytest.mark.slow


def test_keyboard_and_accessibility(browser, place):
    folder, address, _ = place
    empty, _, full, keys = browser(address, ["axe"], ["files", str(folder / "scan.nii")], ["axe"], ["keyboard"])
    assert not empty and not full, (empty, full)
    assert {"files", "canvas", "threshold", "smallest", "save-mask", "save-json"} <= set(keys["reached"])
    assert keys["places"][0] != keys["places"][1]


def test_the_whole_way_by_keyboard_alone(browser, place, tmp_path):
    folder, address, _ = place
    large = scan(tmp_path / "large.nii", (220, 220, 220), sizes=(1, 1, 1))
    (found,) = browser(address, ["alone", str(large), str(folder / "scan.nii")])
    assert found["states"] == ["cancelled", "done"] and found["saved"] == "scan_lesion.nii.gz", found
    assert found["places"][0] != found["places"][1] and found["opacity"] == 0.45 and found["threshold"] == 0.55
    assert found["focus"] == "files", "after Cancel, which is gone, the focus is where the next scan is opened"


ORANGE = """(() => { const { width, height } = page.canvas = document.getElementById("canvas");
    const { data } = page.canvas.getContext("2d").getImageData(0, 0, width, height); let n = 0;
    for (let i = 0; i < data.length; i += 4) n += Math.max(0, data[i] - data[i + 2]);
    return n; })()"""
MADE_UP = """(async () => { let said = ""; const line = document.getElementById("doing");
    new MutationObserver(() => { said = line.textContent || said; }).observe(line, { childList: true });
    document.getElementById("made-up").click();
    while (page.running || !page.cases.length) await new Promise((done) => setTimeout(done, 20));
    return said; })()"""  # and what was last said while it ran
FAINTER = """(() => { const o = document.getElementById("opacity"); o.value = %s;
    o.dispatchEvent(new Event("input")); })()"""


def test_what_a_scan_takes_is_told_before_it_starts(browser, place):
    """And a made-up scan is at hand, whose time and memory are told while it runs; its mask can be made fainter."""
    told = ["evaluate", "document.getElementById('expected').textContent"]
    before, said, name, after, some, _, none, _, full = browser(
        place[1], told, ["evaluate", MADE_UP],
        ["evaluate", "[page.cases[0].name, page.cases[0].state, page.cases[0].mask]"], told, ["evaluate", ORANGE],
        ["evaluate", FAINTER % 0], ["evaluate", ORANGE], ["evaluate", FAINTER % 100], ["evaluate", ORANGE])
    words = r"A scan of 256 × 256 × 256 voxels takes about \d+ (s|min) and 0\.\d GB of memory on this device\."
    assert re.fullmatch(words, before) and re.fullmatch(words, after)
    assert re.fullmatch(r"made-up\.nii: [a-z ,0-9]+, \d+ s of about \d+ (s|min), 0\.\d GB of memory", said), said
    assert name == ["made-up.nii", "done", "made-up"]
    assert full > some > none


def test_scans_of_a_folder_are_named_by_their_paths(browser, place, several, tmp_path):
    """Two of one name, beside a mask of one and another program's; in list, CSV, report and downloads."""
    for name, path in (("a/FLAIR.nii", several[0]), ("b/c/FLAIR.nii", several[1])):
        (tmp_path / "top" / name).parent.mkdir(parents=True)
        shutil.copy(path, tmp_path / "top" / name)
    for name in ("a/FLAIR_lesion.nii", "b/x_seg.nii", ".hidden.nii"):
        shutil.copy(several[2], tmp_path / "top" / name)
    table, csv, mask, report, note = browser(
        place[1], ["folder", 2, str(tmp_path / "top")], ["evaluate", "csv()"], ["save", "save-mask"],
        ["save", "save-json"], ["evaluate", "[document.getElementById('errors').innerText, details()]"])
    assert table == {"states": ["done", "done"], "names": ["a/FLAIR.nii", "b/c/FLAIR.nii"]}
    assert [row.split(",")[0] for row in csv.splitlines()[1:]] == ["a/FLAIR.nii", "b/c/FLAIR.nii"]
    assert mask["name"] == "b_c_FLAIR_lesion.nii.gz" and report["name"] == "b_c_FLAIR_lesion.json"
    said = json.loads(base64.b64decode(report["content"]))
    assert said["scan"] == ["b/c/FLAIR.nii"] and said["mask"] == mask["name"]
    assert note[0] == "note: top: passed over as masks by their names: x_seg.nii; give a file by itself to segment it"
    assert "FLAIR.nii" not in note[1] and "b/c" not in note[1] and "error" not in note[1]


def test_fits_every_screen(browser, place, tmp_path):
    folder, address, _ = place
    _, *wide = browser(address, ["files", str(folder / "scan.nii")],
                       *[["picture", str(tmp_path / f"{n}.png"), *size] for n, size in enumerate(
                           ([1280, 900, False], [640, 450, True], [360, 740, True]))])
    assert wide == [0, 0, 0]  # nothing sticks out; 640 is 1280 at 200 % zoom
