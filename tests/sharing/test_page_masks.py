"""Masks of the page's steps against those of the program: voxels, header, volume, sentences; and the words of both."""

import ast
import json
import re
import runpy
import subprocess

import nibabel as nib
import numpy as np
import pytest
from page_steps import Page, model_of, scan
from page_steps import check_mask as check

from meshnet import ROOT, segment_scan
from meshnet.errors import UserError
from meshnet.networks.folder import BUILT_IN, default_model
from meshnet.numbers import in_ml, plain
from meshnet.scans.checks import _mm

SURE = 0.56


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


@pytest.mark.parametrize("name, norm, tilt, values", [
    ("batch", "batch", 0.0, {"min_lesion_mm3": 400, "scaling": "quantile"}),
    ("instance", "instance", 0.2, {"averaged": True, "shifted": True, "centre": "middle", "threshold": 0.55}),
    ("classes", "batch", 0.0, {"classes": ("background", "a", "b"), "min_lesion_mm3": 900})])
def test_masks_of_made_up_scans(page, tmp_path, name, norm, tilt, values):
    model = model_of(tmp_path / "model", norm, **values)
    form = nib.Nifti2Image if name == "classes" else nib.Nifti1Image
    check(page, [scan(tmp_path / "scan.nii", tilt=tilt, form=form)], model, tmp_path)


def test_the_contrast_and_a_sure_voxel_decide_as_in_the_program(page, tmp_path):
    """Made-up probabilities; both leave out parts for want of a sure voxel, and small ones."""
    values = {"scaling": "lesions_bright", "shifted": True, "averaged": True, "centre": "middle", "threshold": 0.9}
    looks = segment_scan(scan(tmp_path / "scan.nii"), model_of(tmp_path / "any", "instance", **values)).contrast
    quality = {"quality": {"marked": [0.1, -0.2, 0.3, -0.5, 0.4], "empty": [0.3, -0.2, 0.1]}}
    for number, (sure, size) in enumerate(((0.0, 0.0), (SURE, 0.0), (SURE, 3000.0))):
        settings = {"threshold": 0.5, "sure": sure, "min_lesion_mm3": size}
        model = model_of(tmp_path / f"model{number}", "instance", **values, contrasts={looks: settings | quality},
                         others={"about": {"trust": {looks: "made up"}}})
        answer = check(page, [tmp_path / "scan.nii"], model, tmp_path)
        assert answer["contrast"] == looks and answer["expect"] == "made up"
        assert all(answer[key] == value for key, value in settings.items())
        print(answer["lesions"], answer["remarks"])
        assert len(answer["remarks"]) == number and answer["lesions"] > 0
    assert check(page, [tmp_path / "scan.nii"], model, tmp_path, threshold=0.5)["sure"] == 0
    check(page, [tmp_path / "scan.nii"], model, tmp_path, min_lesion_mm3=100.0)
    never = {looks: {"threshold": 0.5, "sure": 1.0} | quality}
    none = check(page, [tmp_path / "scan.nii"], model_of(tmp_path / "none", "instance", **values, contrasts=never),
                 tmp_path)
    assert not none["lesions"] and none["quality"] not in (0, answer["quality"], 1)


def test_a_class_that_counts_as_well_does_so_on_the_page(page, tmp_path):
    values = {"scaling": "lesions_bright", "threshold": 0.5, "shifted": True, "averaged": True, "centre": "middle",
              "classes": ("background", "lesion", "spots"), "marks": "lesion"}
    looks = segment_scan(scan(tmp_path / "scan.nii"), model_of(tmp_path / "any", "instance", **values)).contrast
    alone, with_spots = (check(page, [tmp_path / "scan.nii"], model_of(
        tmp_path / f"model{len(also)}", "instance", **values, contrasts={looks: {"also": also}}), tmp_path)
        for also in ([], ["spots"]))
    assert 1.1 * alone["volume_ml"] < with_spots["volume_ml"]


def test_masks_of_several_channels(page, tmp_path):
    model = model_of(tmp_path / "model", "batch", ("FLAIR", "T2w"), marks="lesion")
    paths = [scan(tmp_path / "a.nii"), scan(tmp_path / "b.nii", (30, 34, 20), sizes=(3.0, 3.0, 4.0), seed=1)]
    check(page, paths, model, tmp_path, threshold=0.4, min_lesion_mm3=100)


@pytest.mark.slow
@pytest.mark.parametrize("model, within", [
    (BUILT_IN / "meshnet16-synthetic", 1e-3),
    (default_model(), 1 / 255)])  # a cascade hands on bytes, of which one here and there rounds to the next
def test_masks_of_real_scans(page, shared_data, tmp_path, model, within):
    """Every scan at hand, and two masks given as scans: one with a warning, one refused. Other masks and label maps are
    left out: of their flat values norms make more of the last bit, and a voxel in a thousand or two differs."""
    masks = ["mask.nii", "lesion.nii", "labels_", "model_output"]
    scans = [path for path in sorted(shared_data.rglob("*.nii.gz"))
             if not {"label_maps", "lesions_mni", "lesions_chronic"} & set(path.parts)
             and not any(word in path.name for word in masks)]
    assert len(scans) >= 17
    for path in (*scans, shared_data / "acute_stroke/case0009_mask.nii.gz"):
        answer = check(page, [path], model, tmp_path, within=within)
        print(path.relative_to(shared_data), answer["volume_ml"], answer["differ"], answer["warnings"], answer["parts"])
        if "M2265_T2w" in path.name:
            assert answer["volume_ml"] > 20
    assert "is it a mask" in answer["warnings"][0]
    small = shared_data / "ms/sub-07/lesion_mask.nii.gz"  # nothing of it is left on a grid of 4 mm
    with pytest.raises(UserError, match="same value everywhere") as refused:
        check(page, [small], model, tmp_path)
    answer = page.ask("segment", model=str(model), scans=[str(small)], settings={})
    assert answer["error"] == str(refused.value)


# ---------------------------------------------------------------------- words

def templates(path):
    """Every text of a Python file, f-strings with {} for what is filled in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.add("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_messages_are_those_of_the_program():
    """The table of the page holds no sentence that the named Python file does not have."""
    text = (ROOT / "meshnet/sharing/page/messages.js").read_text(encoding="utf-8")
    table = text[text.index("const MESSAGES = {"):text.index("const OWN_MESSAGES")]
    path, seen = None, 0
    for line in table.splitlines()[1:]:
        if named := re.match(r"\s*// (meshnet/\S+\.py)", line):
            path = ROOT / named.group(1)
        elif entry := re.match(r"\s*\w+: (\".*\"),$", line):
            message = json.loads(entry.group(1))
            known = {text.removeprefix("--") for text in templates(path)}
            assert message in known, f"{message!r} is not in {path}"
            seen += 1
    keys = re.findall(r'^  (\w+): "', text, re.MULTILINE)
    assert len(keys) == len(set(keys)), [key for key in keys if keys.count(key) > 1]  # JavaScript takes the last
    assert seen >= 25


# What these files refuse or say and a page has no use for: of masks of a data set, of files on a disk, and of settings
# and models of a caller in Python.
NOT_IN_A_PAGE = ("--labels", "of the lesion lie outside", "cannot be read (", "scan; check the path", "the lesion of",
                 "of the lesion lies",
                 "--device", "without a card", "found an empty list", "threads: found", "has classes", "{}: marks",
                 "files of one case")  # of one channel a page takes each file by itself


def test_every_message_about_a_scan_has_its_twin():
    """The other direction: what the program refuses of a scan or says about it, the page refuses and says too."""
    text = (ROOT / "meshnet/sharing/page/messages.js").read_text(encoding="utf-8")
    table = {json.loads(entry) for entry in re.findall(r'^\s*\w+: (".*"),$', text, re.MULTILINE)}
    messages = runpy.run_path(str(ROOT / "docs/checks.py"))["messages"]
    seen = 0
    for name in ("scans/nifti.py", "scans/checks.py", "scans/naming.py", "inference/scan.py"):
        refused, said = messages(ROOT / "meshnet" / name)
        for sentence in {re.sub(r"\{\w*\}", "{}", one) for one in refused | said}:
            if not any(part in sentence for part in NOT_IN_A_PAGE):
                assert sentence in table, f"{name}: {sentence!r}"
                seen += 1
    assert seen >= 34


def test_formats_are_pythons(page):
    values = [0.0, 0.004, 0.005, 0.0051, 1, 0.1, 1 / 3, 1e-5, 123456789.0, 1e6, 999999.5, 2.5, 0.125, 22.5, 23.5, -7.25,
              1e5, 12.3456789, 1e18, 4.25e-7]
    odd = ("[NaN, Infinity, -Infinity].map((v) => [general(v), plain(v), fixed(v, 0), fixed(v, 2), "
           "millimetres([v, 1.5])])")
    code = f"{json.dumps(values)}.map((v) => [general(v), plain(v), fixed(v, 0), fixed(v, 2), roundEven(v), inMl(v)])"
    steps = (ROOT / "meshnet/sharing/page/messages.js").read_text(encoding="utf-8")
    done = subprocess.run(["node", "-e", f"{steps}console.log(JSON.stringify([{code}, {odd}]))"], capture_output=True,
                          text=True, check=True)
    expected = [[f"{v:g}", plain(v), f"{v:.0f}", f"{v:.2f}", round(v), in_ml(v)] for v in values]
    unbounded = [[f"{v:g}", plain(v), f"{v:.0f}", f"{v:.2f}", _mm([v, 1.5])] for v in (np.nan, np.inf, -np.inf)]
    assert json.loads(done.stdout) == [expected, unbounded]
