"""The page in real browsers: a scan in, the mask out, nothing leaves, bad files, results of several scans."""

import base64
import gzip
import json
import re
import shutil
import socket

import numpy as np
import pytest
from page_steps import Page, bad_files, content

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("of, where", [("model", "file"), ("model", "http"), ("model", "isolated"),
                                       ("cascade", "file"), ("cascade", "isolated")])
def test_a_scan_becomes_the_mask_of_node(browser, place, of, where):
    folder, address, asked = place
    below, scan = ("", str(folder / "scan.nii")) if of == "model" else ("cascade/", str(folder / "head/scan.nii"))
    with Page() as page:
        told = page.ask("segment", model=str(folder / of), scans=[scan],
                        mask=str(folder / "mask.nii"), probability=str(folder / "probability.nii"), settings={})
    asked.clear()
    heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.bind(("127.0.0.1", 0))
    heard.setblocking(False)
    address = address.replace("index.html", f"{below}index.html")
    given = {"file": (folder / "page" / below / "index.html").as_uri(), "http": address,
             "isolated": f"{address}?isolated"}[where]
    found, threads, mask, probability, png, report, less, other, _, again, _, small, _, none, leave = browser(
        given, ["files", scan],
        ["evaluate", "[window.page.threads, self.crossOriginIsolated, navigator.hardwareConcurrency]"],
        ["save", "save-mask"], ["save", "save-probability"], ["save", "save-picture"], ["save", "save-json"],
        ["change", "threshold", "0.51"], ["evaluate", "reportOf()"], ["change", "threshold", "0.5"],
        ["evaluate", "reportOf()"], ["change", "smallest", "0.001"], ["evaluate", "reportOf()"],
        ["change", "smallest", "0.3" if of == "model" else "0"], ["change", "threshold", "1"],
        ["leave", place[1].replace("index.html", "planted").replace("127.0.0.1", "localhost"),  # another origin
         heard.getsockname()[1]])
    assert found["states"] == ["done"] and "mL in" in found["answer"]
    assert threads[:2] == ([min(8, threads[2]), True] if where == "isolated" else [1, False])
    assert content(mask) == (folder / "mask.nii").read_bytes() and mask["name"] == "scan_lesion.nii.gz"
    expected, got = (np.frombuffer(each[352:], np.float32) for each in
                     ((folder / "probability.nii").read_bytes(), content(probability)))
    assert np.abs(expected - got).max() < 1e-6  # the engines of browsers may round exp differently
    assert base64.b64decode(png["content"])[:4] == b"\x89PNG"
    saved = json.loads(base64.b64decode(report["content"]))
    assert saved["volume_ml"] == found["report"]["volume_ml"] > 0
    for one in (saved, again):  # again: with the threshold of the card typed once more
        assert all(one[key] == told[key] for key in ("quality", "quality_from"))
        assert one["quality_from"]["learned"] == (of == "cascade")
    assert other["quality_from"]["learned"] is small["quality_from"]["learned"] is False
    assert less != found["answer"] and "no lesion" in none
    assert not [way for way, how in leave["tried"].items() if how == "sent"], leave
    assert {"connect-src", "img-src", "form-action"} <= set(leave["refused"])
    with heard, pytest.raises(BlockingIOError):  # nothing came by WebRTC
        heard.recv(100)
    opened = ("GET", "/planted?opened")
    assert opened in asked, "a policy governs this now: the page and docs/browser.md can say more"
    asked[:] = [one for one in asked if one != opened]
    names = {path.removeprefix(f"/{below}").removesuffix("?isolated") for _, path in asked}
    assert names <= {path.name for path in (folder / "page" / below).iterdir()}, names  # nothing planted arrived


CANCEL_DURING = """(async () => { const line = document.getElementById("doing"), seen = [];
    const observer = new MutationObserver(() => { seen.push(line.textContent);
      if (line.textContent.includes("%s")) document.getElementById("cancel").click(); });
    observer.observe(line, { childList: true });
    document.getElementById("made-up").click();
    while (page.running || !page.cases.length) await new Promise((done) => setTimeout(done, 20));
    observer.disconnect();
    return [seen.at(-1), page.cases.map((one) => one.state)]; })()"""


def test_a_cascade_is_cancelled_in_either_network_and_works_again(browser, place):
    folder = place[0]
    first, second, found, told = browser(
        (folder / "page/cascade/index.html").as_uri(), *[["evaluate", CANCEL_DURING % f"network {n}"] for n in (1, 2)],
        ["files", str(folder / "head/scan.nii")], ["evaluate", "[build.first, details()]"])
    for said, name in ((first, "network 1 of 2, grid 1 of 2"), (second, "network 2 of 2")):
        assert re.search(rf": computing, {name}, \d+ s of about \d+ s", said[0]), said
        assert set(said[1]) == {"cancelled"}
    assert found["states"] == ["cancelled", "cancelled", "done"] and found["report"]["volume_ml"] > 0
    assert found["report"]["first"] == told[0] and f"behind {told[0][:12]}" in told[1]


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


AFTER_FIRST = """(() => { const before = heard.result; let n = 0; heard.result = (found) => { before(found);
    if (++n === 1) { %s } }; })()"""  # what a user does as soon as the first of several results is in sight
TYPE = 'const t = document.getElementById("threshold"); t.value = "%s"; t.dispatchEvent(new Event("change"));'
TABLE = "page.cases.map((one) => [one.name, one.state, one.found ? one.found.volume_ml : one.error])"
WAIT = "new Promise((done) => setTimeout(() => done([document.getElementById('answer').textContent, page.result."\
       "decision.threshold, document.getElementById('threshold').value, page.result.warnings]), 1200))"


@pytest.mark.parametrize("typed", ["50", "0.1", ""])
def test_a_result_stays_with_its_scan_whatever_is_typed(browser, place, several, typed):
    """While another scan is computed the fields are off; what they are made to say all the same changes no result."""
    address = place[1]
    _, alone = browser(address, ["files", *several], ["evaluate", TABLE])
    off = 'window.off = [...document.querySelectorAll(".controls *:disabled, .downloads *:disabled")].map((e) => e.id);'
    _, _, table, mask, off = browser(address, ["evaluate", AFTER_FIRST % (off + TYPE % typed)], ["files", *several],
                                     ["evaluate", TABLE], ["save", "save-mask"], ["evaluate", "window.off"])
    assert table == alone and [state for _, state, _ in table] == ["done"] * 4
    assert mask["name"] == "s3_lesion.nii.gz" and list(np.frombuffer(content(mask)[42:48], "<i2")) == [46, 44, 36]
    assert off == ["threshold", "smallest", "reset", "save-mask", "save-probability"]


def test_an_answer_or_error_of_another_scan_is_not_taken(browser, place, several):
    """Faults of a download or of a decision are said, and the scan goes on; late answers are dropped."""
    late = """const other = { ...found, id: 2, volume_ml: -1 }; heard.result(other), heard.decided(other),
              heard.file({ id: 2, kind: "mask", content: new Uint8Array(1) });
              for (const asked of ["decide", "file", "sort"]) heard.error({ asked, id: 0, message: asked });
              state.worker.postMessage({ what: "decide", id: 2, threshold: 0.1, smallest: 0 });
              state.worker.postMessage({ what: "decide", id: 0, threshold: 7, smallest: 0 });"""
    _, _, table, saved, errors = browser(
        place[1], ["evaluate", AFTER_FIRST % late], ["files", *several[:2]], ["evaluate", TABLE],
        ["evaluate", "page.saved || null"],
        ["evaluate", "[...document.querySelectorAll('#errors p')].map((p) => p.textContent)"])
    assert [state for _, state, _ in table] == ["done", "done"] and all(volume > 0 for *_, volume in table)
    assert saved is None and errors[:3] == ["decide", "file", "sort"]


def test_the_fields_of_a_decision(browser, place, several):
    """An empty field is no threshold, one beyond 1 is refused, one off the step counts; the CSV says it."""
    live = TYPE.replace("change", "input") % "0.62"
    _, first, empty, _, beyond, _, typed, _, low, csv, error = browser(
        place[1], ["files", several[0]], ["evaluate", WAIT],
        ["evaluate", f"(() => {{ {TYPE % ''} }})() || {WAIT}"], ["evaluate", f"(() => {{ {TYPE % '50'} }})()"],
        ["evaluate", WAIT], ["evaluate", f"(() => {{ {live} }})()"], ["evaluate", WAIT],
        ["evaluate", f"(() => {{ {TYPE % '0'} }})()"], ["evaluate", WAIT], ["evaluate", "csv()"],
        ["evaluate", "document.getElementById('errors').textContent"])
    assert first[1] == 0.5 and empty == first == beyond and error == "threshold: found 50, expected 0 to 1"
    assert typed[1:3] == [0.62, "0.62"]
    head, row = csv.splitlines()
    assert head == "scan,state,volume_ml,lesions,largest_ml,threshold,min_lesion_mm3,remarks"
    assert low[1] == 0 and row.split(",")[5:7] == ["0", "300"]
    assert not any("more than a lesion" in one for one in typed[3])


def test_an_earlier_result_outlives_a_refusal_and_a_cancel(browser, place, several, tmp_path):
    (tmp_path / "bad.nii").write_bytes(b"text" * 100)
    bad, sight = str(tmp_path / "bad.nii"), "[document.getElementById('result').hidden, page.shown && page.shown.name]"
    rows = "document.getElementById('rows').innerText"
    first, mask, both, again, _, _, cancelled, shown = browser(
        place[1], ["files", several[0], bad], ["save", "save-mask"], ["evaluate", sight], ["files", bad],
        ["evaluate", AFTER_FIRST % 'document.getElementById("cancel").click();'], ["files", *several[1:3]],
        ["evaluate", f"[...{sight}, {rows}]"],
        ["evaluate", "(async () => { document.querySelector('#rows button').click(); while (page.running) await new "
                     f"Promise((done) => setTimeout(done, 100)); return {sight}; }})()"])
    assert first["states"] == ["done", "refused"] and both == [False, "s0.nii"] and mask["name"] == "s0_lesion.nii.gz"
    assert not again["hidden"] and again["answer"].startswith("s0.nii: ")
    assert cancelled[:2] == [True, None] and cancelled[2].count("Show") == 2 and "cancelled" in cancelled[2]
    assert shown == [False, "s0.nii"]


def test_files_that_are_dragged_in(browser, place, several, tmp_path):
    """From the desktop, with the page on a disk and on a server; what of a folder cannot be read is said."""
    if browser.name != "chrome":
        pytest.skip("only Chromium can be made to drag from the desktop")
    shutil.copytree(place[0] / "page", tmp_path / "page")
    (tmp_path / "folder").mkdir()
    shutil.copy(several[0], tmp_path / "folder/inside.nii")
    disk = (tmp_path / "page/index.html").as_uri()
    for address in (disk, place[1]):
        (found,) = browser(address, ["drop", 2, *several[:2]])
        assert found == {"states": ["done"] * 2, "names": ["s0.nii", "s1.nii"], "errors": ""}
    (found,) = browser(place[1], ["drop", 1, str(tmp_path / "folder")])
    assert found["names"] == ["inside.nii"]
    (found,) = browser(disk, ["drop", 1, str(tmp_path / "folder")])
    assert found["names"] == ["inside.nii"] or found["errors"].startswith("folder: this browser does not let"), found


def test_a_fault_can_be_reported_and_copied(browser, place, several, tmp_path):
    """The details are there without a result and hold the last error, without the scan's name; also a CSV's formulas,
    and DICOM files that are sorted while another scan is cancelled."""
    (tmp_path / "=1+2,x.nii").write_bytes(b"text" * 100)
    sort = """(async () => { const bytes = new Uint8Array(400); bytes.set([68, 73, 67, 77], 128);
              const line = document.getElementById("sorting"), said = await new Promise((done) => {
                new MutationObserver(() => line.textContent && done(line.textContent))
                  .observe(line, { childList: true });
                take([new File([bytes], "a.dcm")]); setTimeout(() => done("nothing"), 10000); });
              document.getElementById("cancel").click();
              for (let i = 0; i < 100 && document.getElementById("sorting").textContent; ++i)
                await new Promise((done) => setTimeout(done, 100));
              return [said, document.getElementById("sorting").textContent]; })()"""
    copy = """(async () => { Object.defineProperty(navigator, "clipboard", { value: undefined });
              document.querySelector("details:has(#details)").open = true;
              await copyDetails(); return document.getElementById("copied").textContent; })()"""
    text = "document.getElementById('details').innerText"
    _, csv, _, details, seen, named, copied, _, sorted_ = browser(
        place[1], ["files", str(tmp_path / "=1+2,x.nii")], ["evaluate", "csv()"],
        ["evaluate", "document.querySelector('details:has(#details)').open = true"], ["evaluate", text],
        ["evaluate", "document.getElementById('details').offsetParent !== null"],
        ["evaluate", f"document.getElementById('with-name').click() || {text}"], ["evaluate", copy],
        ["evaluate", "take([new File([new Uint8Array(30e6)], 'big.nii')]).then(() => 0)"], ["evaluate", sort])
    assert csv.splitlines()[1].startswith("\"'=1+2,x.nii\",refused,") and "\"'=1+2,x.nii: found" in csv, csv
    assert seen and "error: scan: found" in details and "1+2" not in details and "error: =1+2,x.nii: found" in named
    assert copied.startswith(("Copied.", "Not copied: "))
    assert sorted_ == ["Reading DICOM, 1 file", ""]


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
