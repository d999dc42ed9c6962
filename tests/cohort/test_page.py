"""The page of a cohort: what it holds, which scans are odd, and that Chromium opens it without a request."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from bright import bright_model, infer, scan_file
from chromium import Browser
from PIL import Image
from stand_in import wait_for

from meshnet.cohort import page
from meshnet.cohort.page import deviations, oddities, write_pages
from meshnet.cohort.records import Records
from meshnet.scans.overlay import thumbnail


def record(number: int, **values) -> dict:
    rng = np.random.default_rng(number)
    head = {"head_mm": [float(v) for v in rng.normal([150, 190, 170], 5)], "grey": float(rng.normal(.5, .02))}
    return {"name": f"sub-{number}", "key": f"{number:024x}", "volume_ml": float(rng.lognormal(2.5, .3)), "lesions": 2,
            "largest_ml": 1.0, "side": "left", "warnings": [], "remarks": [], "head": head, **values}


def content(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_odd_scans_come_first_with_the_reason_and_failed_ones_before_them(tmp_path):
    done = [record(i) for i in range(30)]
    done[7]["head"]["head_mm"][2] = 60.0
    done[9]["volume_ml"] = 900.0
    done[11]["warnings"] = ["the scan is <b>thick</b></script>"]
    pages = write_pages(tmp_path, Records(tmp_path), done, [{"name": "sub-x", "key": "f", "error": "broken"}], "A & B")
    text, data = pages[0].read_text(), content(pages[0])
    assert len(pages) == 1 and "A &amp; B" in text and "</script></script>" not in text and "<b>thick" not in text
    first = data["rows"][:3]
    assert [row["name"] for row in first] == ["sub-x", "sub-7", "sub-9"]
    assert "extent of the head from bottom to top below the others" in first[1]["why"][0]
    assert "volume above the others" in first[2]["why"][0]
    assert sum(one["count"] for one in data["bins"]) == 30 and data["rows"][0].get("bin") is None
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", text)


def test_the_page_says_which_models_made_the_masks(model, tmp_path):
    """By name alone, since a path may name its owner; nothing of records that do not know it."""
    done = [record(1, model="a: marks lesion on T2w scans"), record(2, model="b: marks lesion on DWI scans"), record(3)]
    text = write_pages(tmp_path, Records(tmp_path), done, [], "A")[0].read_text()
    assert "a: marks lesion on T2w scans; b: marks lesion on DWI scans. 3 scans, 0 failed" in text
    assert "marks lesion" not in write_pages(tmp_path, Records(tmp_path), [record(1)], [], "A")[0].read_text()
    scan_file(tmp_path / "a.nii.gz")
    infer(tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--model", model, "--report")
    text = (tmp_path / "out/report.html").read_text()
    assert f"{model.name}: marks lesion (disease not stated) on T2w scans. 1 scan, 0 failed" in text
    assert str(model.parent) not in text


def test_classes_are_told_apart_on_the_page(tmp_path):
    """By name and volume, and in colours of their own."""
    scan_file(tmp_path / "a.nii.gz")
    model = bright_model(tmp_path / "m", classes=["background", "grey", "white"])
    found = infer(tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--model", model, "--report")
    told = json.loads(next((tmp_path / "out/.meshnet").glob("*.json")).read_text())["classes_ml"]
    assert list(told) == ["grey", "white"] and f"mL: grey {told['grey']:.2f}, white {told['white']:.2f}" in found.stdout
    assert "report.html in a browser" in found.stderr.splitlines()[-1] and "Masks of 1 scan" in (
        tmp_path / "out/report.html").read_text()
    assert content(tmp_path / "out/report.html")["rows"][0]["classes"] == told
    one = infer(tmp_path / "a.nii.gz", "--model", model)
    assert one.stderr.splitlines()[-1] == f"Next: look at {tmp_path}/a_lesion.png"  # no threshold decides
    volume, affine = np.random.default_rng(0).random((20, 20, 20)), np.eye(4)
    mask = np.zeros(volume.shape, np.uint8)
    mask[5:15, 5:10, 5:15] = 1
    several = mask.copy()
    several[5:15, 10:15, 5:15] = 2
    green = [np.asarray(Image.open(io.BytesIO(thumbnail(volume, each, affine, quality=95)))).astype(int)
             for each in (mask, several)]
    assert [bool(((rgb[..., 1] - rgb[..., 0]) > 60).any()) for rgb in green] == [False, True]


def test_deviations_by_hand():
    assert deviations([1, 2, 3]) == [0, 0, 0]  # too few to be unlike the others
    values = [1, 2, 3, 4, 5, 6, 7, 8, 100, None]  # median 5, MAD 2
    assert deviations(values)[8] == pytest.approx(0.6745 * 95 / 2) and deviations(values)[9] == 0
    assert deviations([3] * 9) == [0] * 9
    assert deviations([3] * 9 + [4])[9] > page.ODD  # where the MAD is 0 the mean deviation counts
    assert oddities([record(1)]) == [(0.0, [])]


def test_two_looks_that_disagree_are_odd_in_any_company(tmp_path):
    few = [record(i, agreement=value) for i, value in enumerate((0.9, 0.49, 0.51))]
    assert [why for _, why in oddities(few)] == [[], ["agreement of two looks 0.49"], []]
    many = [record(i, agreement=0.95 + 0.001 * (i % 5)) for i in range(20)] + [record(21, agreement=0.8)]
    many.append(record(22, agreement=1.0))  # agreeing well is nothing odd
    found = oddities(many)
    assert [i for i, (_, why) in enumerate(found) if any("two looks" in line for line in why)] == [20]
    text = write_pages(tmp_path, Records(tmp_path), many, [], "T")[0].read_text()
    assert "brightness, or agreement of two looks unlike" in text and content(tmp_path / "report.html")["rows"][0][
        "agreement"] == 0.8


def test_a_longer_list_gets_several_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST", 4)
    (tmp_path / "report_9.html").touch()  # of a longer list
    pages = write_pages(tmp_path, Records(tmp_path), [record(i) for i in range(10)], [], "C")
    assert [path.name for path in pages] == ["report.html", "report_2.html", "report_3.html"]
    assert [len(content(path)["rows"]) for path in pages] == [4, 4, 2]
    assert 'href="report_3.html"' in pages[0].read_text()
    assert not (tmp_path / "report_9.html").exists()


def test_infer_writes_it_with_pictures(model, tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        scan_file(tmp_path / "scans" / f"{name}.nii.gz")
    found = infer(tmp_path / "scans", "-o", tmp_path / "masks", "--model", model, "--no-picture", "--report",
                  "--agreement")
    assert "report.html: the page of 2 scans" in found.stderr
    data = content(tmp_path / "masks" / "report.html")
    assert [row["agreement"] for row in data["rows"]] == [1.0, 1.0]  # the model does not know left from right
    assert "quality,agreement" in (tmp_path / "masks" / "lesions.csv").read_text()
    assert [(row["name"], row["picture"], row["lesions"]) for row in data["rows"]] == [
        ("a.nii.gz", 0, 1), ("b.nii.gz", 1, 1)]
    pictures = re.search(r'id="pictures0">\s*(.*?)\s*</script>', (tmp_path / "masks" / "report.html").read_text(),
                         re.DOTALL)[1].split("\n")
    assert len(pictures) == 2 and all(one.startswith("/9j/") for one in pictures)  # JPEG in base64
    for path in (tmp_path / "masks" / ".meshnet").glob("*.jpg"):
        path.unlink()
    infer(tmp_path / "scans", "-o", tmp_path / "masks", "--model", model, "--no-picture", "--report")
    assert content(tmp_path / "masks" / "report.html") == data  # drawn from the masks, without the network


def test_scans_whose_files_share_a_name_are_told_apart(model, tmp_path):
    for folder in ("sub-1", "sub-2"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        scan_file(tmp_path / "scans" / folder / "FLAIR.nii.gz")
    call = (("-o", tmp_path / "masks", "--model", model, "--no-picture", "--report"))
    infer(tmp_path / "scans", *call)
    rows = content(tmp_path / "masks" / "report.html")["rows"]
    assert [(row["name"], row["mask"]) for row in rows] == [
        (f"{folder}/FLAIR.nii.gz", f"{folder}/FLAIR_lesion.nii.gz") for folder in ("sub-1", "sub-2")]
    paths = [str(tmp_path / "scans" / folder / "FLAIR.nii.gz") for folder in ("sub-1", "sub-2")]
    infer(*paths, "-o", tmp_path / "one_by_one", *call[2:])
    rows = content(tmp_path / "one_by_one" / "report.html")["rows"]
    assert [row["name"] for row in rows] == paths and rows[0]["mask"] == "sub-1_FLAIR_lesion.nii.gz"


def test_marks_have_one_place_for_all_pages_of_a_folder_and_another_elsewhere(tmp_path, monkeypatch):
    one, other = Records(tmp_path / "one"), Records(tmp_path / "other")
    first = content(write_pages(one.out, one, [record(i) for i in range(3)], [], "T")[0])["id"]
    monkeypatch.setattr(page, "MOST", 4)
    later = write_pages(one.out, one, [record(i) for i in range(2, 9)], [], "T")
    assert [content(path)["id"] for path in later] == [first, first]
    assert content(write_pages(other.out, other, [record(1)], [], "T")[0])["id"] != first
    (one.folder / page.ID).write_bytes(b"\xff broken")
    assert content(write_pages(one.out, one, [record(1)], [], "T")[0])["id"] not in ("", first)


def test_marks_outlive_a_changed_cohort_and_come_back_from_their_csv(tmp_path):
    records = Records(tmp_path / "out")
    done = [record(i, name=f'sub-{i}/a, "b".nii.gz', mask=records.out / f"sub-{i}_lesion.nii.gz") for i in range(3)]
    path = write_pages(records.out, records, done, [], "T")[0]
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("/url", {"url": f"file://{path}"})
        ask = lambda script: browser.ask(f"(() => {{ {script} }})()")
        at = "const at = name => rows.findIndex(row => row.name.startsWith(name));"
        ask(at + "mark(at('sub-1'), 'wrong'); mark(at('sub-2'), 'seen')")
        table = browser.ask("exported()")
        assert sorted(table.splitlines()[1:]) == sorted(
            f'"sub-{i}/a, ""b"".nii.gz",{mark},{done[i]["volume_ml"]},2,sub-{i}_lesion.nii.gz,{done[i]["key"]}'
            for i, mark in ((1, "wrong"), (2, "seen")))
        write_pages(records.out, records, [*done[1:], record(5)], [], "T")
        browser.call("/url", {"url": f"file://{path}"})
        assert browser.ask("exported()").count("wrong") == 1 and len(browser.ask("exported()").splitlines()) == 3
        ask("localStorage.setItem(memory, JSON.stringify({other: 'seen'})); " + at + "mark(at('sub-5'), 'unsure')")
        assert browser.ask("JSON.parse(localStorage.getItem(memory)).other") == "seen"  # of a page beside this one
        semicolons = "\ufeffscan;mark\r\nsub-5;seen\r\nsub-9;wrong\r\n"
        for text, said in ((table, "2 marks imported"),
                           (semicolons, "1 mark imported, 1 line is of no scan on this page")):
            ask(f"imported({json.dumps(text)})")
            assert browser.ask("byId('count').textContent") == said
        assert browser.ask("rows.map(row => marks[row.key]).sort()") == ["seen", "seen", "wrong"]
    finally:
        browser.close()


@pytest.mark.slow
def test_chromium_opens_five_thousand_scans_without_a_request(tmp_path):
    play = pytest.importorskip("playwright.sync_api", reason="pip install playwright; apt-get install chromium")
    browser = shutil.which("chromium") or pytest.skip("apt-get install chromium")
    records = Records(tmp_path)
    done = [record(i) for i in range(5000)]
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (96, 260, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format="JPEG", quality=20)
    for one in done:
        (records.folder / f"{one['key']}.jpg").write_bytes(file.getvalue())
    path = write_pages(tmp_path, records, done, [], "Many")[0]
    assert path.stat().st_size < 120e6
    with play.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = chromium.new_page()
        requests, errors = [], []
        shown.on("request", lambda request: requests.append(request.url))
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto(f"file://{path}")
        shown.wait_for_selector("#list li img[src]")
        for key in "jjwju":
            shown.keyboard.press(key)
        names, of = shown.evaluate("shown.map(number => rows[number].name)"), {one["name"]: one for one in done}
        assert shown.evaluate("exported()").splitlines() == ["scan,mark,volume_ml,lesions,mask,key", *(
            f"{names[i]},{mark},{of[names[i]]['volume_ml']},2,,{of[names[i]]['key']}"
            for i, mark in ((1, "wrong"), (2, "unsure")))]
        shown.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        last = """(cards[shown.at(-1)].querySelector("img")?.complete
            && cards[shown.at(-1)].querySelector("img").naturalWidth === 260)"""
        wait_for(lambda: shown.evaluate(last))  # the page may not wait for an expression: its policy forbids eval
        assert shown.evaluate("cards[shown.at(-1)].getBoundingClientRect().bottom <= innerHeight + 40")
        assert shown.evaluate("document.querySelectorAll('#list img').length") < 100
        shown.fill("#text", "sub-4999")
        assert shown.text_content("#count") == "1 of 5000 scans"
        assert errors == [] and [url for url in requests if not url.startswith(("data:", f"file://{path}"))] == []
        chromium.close()
