"""Classes that a model sees beside the one that it marks: marked as well where a user asks, else mentioned."""

import json

import numpy as np
import pytest
from bright import bright_model, infer
from cascades import head_file, write_cascade
from model_folders import edit
from small import array

from meshnet import segment_scan
from meshnet.errors import UserError
from meshnet.inference.agreement import agreement
from meshnet.inference.models import load_models
from meshnet.inference.scan import read_case
from meshnet.scans.mask import beside_remarks, seen_beside

NEVER = {"bias": -1, "weights": [0] * 10}
LIKE = " look like fluid, which this model does not count as lesion"
QUALITY = {"marked": [0.0] * 5, "empty": [1.0, 0.0, 0.0]}


@pytest.fixture
def scan(tmp_path):
    return head_file(tmp_path / "scan.nii.gz")


@pytest.fixture
def model(tmp_path, scan):
    """A cascade of a lesion and fluid whose veto takes back all on what the scan looks like, and that contrast."""
    folder = write_cascade(tmp_path / "two")
    looks = segment_scan(scan, folder).contrast
    edit(folder / "config.json", contrasts={looks: {"veto": NEVER, "quality": QUALITY}})
    return folder, looks


def test_what_is_marked_as_well_is_as_where_the_card_says_so_without_a_veto(tmp_path, model, scan):
    folder, looks = model
    vetoed = segment_scan(scan, folder)
    assert vetoed.volume_ml == 0 and vetoed.veto and vetoed.learned
    found = segment_scan(scan, folder, also=["fluid"], probabilities=True)
    assert not found.veto and not found.learned and found.decision.also == ("fluid",)
    edit(folder / "config.json", contrasts={looks: {"also": ["fluid"]}})
    expected = segment_scan(scan, folder, probabilities=True)
    assert np.array_equal(array(found.mask), array(expected.mask)) and found.volume_ml == expected.volume_ml > 0
    assert found.remarks == expected.remarks
    p, marked = array(found.probabilities), array(found.mask) > 0  # of all that is marked, and so is quality
    assert p[marked].min() >= 0.5 > array(expected.probabilities)[marked].min()
    ml = [float(some.sum(dtype=np.float64)) * 0.064 for some in (p, p[marked], marked)]
    assert found.quality == pytest.approx((2 * ml[1] + 1) / (ml[0] + ml[2] + 1), abs=1e-3)


def test_what_the_card_marks_anyway_changes_nothing(model, scan):
    folder, looks = model
    edit(folder / "config.json", contrasts={looks: {"also": ["fluid"], "veto": NEVER, "quality": QUALITY}})
    for also in (["fluid"], "fluid", None, ()):
        found = segment_scan(scan, folder, also=also)
        assert found.veto and found.learned and found.volume_ml == 0 and found.decision.also == ("fluid",)


def test_a_second_look_marks_the_same_classes(model, scan):
    folder, looks = model
    mask, found = array(segment_scan(scan, folder, also=["fluid"]).mask), []
    for own, also in ((NEVER, ["fluid"]), (NEVER, []), (None, [])):
        edit(folder / "config.json", contrasts={looks: {"veto": own} if own else {"also": ["fluid"]}})
        models = load_models([folder])
        found.append(agreement(read_case([scan], models), models, mask, also=also))
    assert found[0] == found[2] > 2 * found[1]  # where the veto counts nothing is found in the second look


def test_volumes_beside_by_hand():
    """12 voxels of 2 mm from 0.4 on are 0.096 mL, and float32 decides."""
    found = np.zeros((3, 5, 4, 3), np.float32)
    found[2, :4, :3, 0], found[2, 4, 0, 0], found[1] = 0.4, np.nextafter(np.float32(0.4), np.float32(0)), 0.4
    classes = ["background", "lesion", "spots"]
    assert seen_beside(found, classes, {"spots": 0.096}, 2.0) == pytest.approx({"spots": 0.096})
    assert seen_beside(found, classes, {"spots": 0.097}, 2.0) == {} == seen_beside(found, classes, {}, 2.0)
    assert beside_remarks({"spots": 17.6}) == ["about 18 mL look like spots, which this model does not count as lesion"]


def test_what_is_seen_and_not_marked_is_mentioned_from_so_many_ml_on(model, scan):
    folder, looks = model
    edit(folder / "config.json", contrasts={looks: {"mentions": {"fluid": 1}}})
    found = segment_scan(scan, folder)
    ml = found.beside["fluid"]
    assert ml > 1 and found.remarks[-1] == f"about {ml:.0f} mL{LIKE}"
    assert segment_scan(scan, folder, threshold=0.6).beside == found.beside
    assert segment_scan(scan, folder, also=["fluid"]).beside == {} == segment_scan(scan, [folder, folder]).beside
    edit(folder / "config.json", contrasts={looks: {"mentions": {"fluid": ml + 0.01}}})
    assert segment_scan(scan, folder).beside == {}


def test_a_user_is_told_and_can_ask(model, scan, tmp_path):
    folder, looks = model
    edit(folder / "config.json", contrasts={looks: {"mentions": {"fluid": 1}}})
    run = infer(scan, "--model", folder, "--no-picture", "-o", tmp_path / "a.nii.gz")
    said = f"about {segment_scan(scan, folder).beside['fluid']:.0f} mL{LIKE}"
    assert run.stdout.count(said) == 1 and "; --also fluid marks fluid as well" in run.stderr
    asked = ("--model", folder, "--no-picture", "-o", tmp_path / "b.nii.gz", "--also", "fluid", scan)
    run = infer(*asked)
    assert "look like fluid" not in run.stdout + run.stderr and "--also" not in run.stderr
    assert "marks lesion (disease not stated), and fluid as well, on T1w scans" in run.stderr
    told = json.loads(infer(*asked, "--overwrite", "--json", "--agreement").stdout)
    assert told["also"] == ["fluid"] and "beside" not in told and 0 < told["agreement"] < 1
    told = json.loads(infer(scan, "--model", folder, "--no-picture", "-o", tmp_path / "c.nii.gz", "--json").stdout)
    assert told["beside"]["fluid"] > 1 and told["remarks"][-1] == said and "also" not in told


def test_a_class_that_cannot_be_marked_as_well_is_refused(model, scan, tmp_path):
    folder, _ = model
    for name in ("lesion", "background", "spots"):
        with pytest.raises(UserError, match=f"^also: found {name}, expected a class that the model does not"):
            segment_scan(scan, folder, also=[name])
    bright_model(tmp_path / "one")
    run = infer(scan, "--model", tmp_path / "one", "-o", tmp_path / "a.nii.gz", "--also", "fluid", check=False)
    assert run.returncode == 2 and "--also: found fluid with a model that marks each of its classes (" in run.stderr
    assert len(run.stderr.splitlines()) == 1 and not (tmp_path / "a.nii.gz").exists()


@pytest.mark.parametrize("changes, said", [
    ({"mentions": {"lesion": 1}}, "found mentions for T2w = {'lesion': 1}, expected at least 1 mL for classes beside"),
    ({"mentions": {"fluid": 0.9}}, "found mentions for T2w = {'fluid': 0.9}, expected at least 1 mL"),
    ({"mentions": {"fluid": True}}, "found mentions for T2w = {'fluid': True}, expected at least 1 mL"),
    ({"mentions": ["fluid"]}, "found mentions for T2w = ['fluid'], expected at least 1 mL")])
def test_a_card_mentions_volumes_of_other_classes(model, scan, changes, said):
    folder, _ = model
    edit(folder / "config.json", contrasts={"T2w": changes})
    with pytest.raises(UserError) as error:
        segment_scan(scan, folder)
    assert said in str(error.value)


def test_only_a_cascade_mentions(model, scan):
    folder, _ = model
    edit(folder / "first/config.json", contrasts={"T2w": {"mentions": {"fluid": 1}}})
    with pytest.raises(UserError, match="found mentions for T2w, expected it only in a cascade; remove it"):
        segment_scan(scan, folder)


def test_scans_may_follow_the_classes(model, scan, tmp_path):
    folder, _ = model
    run = infer("--model", folder, "-o", tmp_path / "a.nii.gz", "--also", scan, check=False)
    assert run.returncode == 2 and run.stderr.startswith(f"error: --also: found {scan}, expected a class of the model")
    run = infer("--model", folder, "-o", tmp_path / "a.nii.gz", "--also", "fluid", scan, "--also", "fluid")
    assert "and fluid as well," in run.stderr


def test_a_launcher_says_it_before_it_starts_jobs(model, scan, tmp_path):
    folder, _ = model
    run = infer(scan, "--model", folder, "-o", tmp_path / "out", "--workers", "2", "--also", "spots", check=False)
    assert run.returncode == 2 and run.stderr.startswith("error: --also: found spots, expected a class that")
    assert not list((tmp_path / "out").iterdir())
    infer(scan, "--model", folder, "-o", tmp_path / "out", "--workers", "2", "--also", "fluid")
    records = list((tmp_path / "out").rglob("*.json"))
    assert any(json.loads(path.read_text()).get("also") == ["fluid"] for path in records)


def test_a_picture_says_what_is_marked_as_well():
    from types import SimpleNamespace

    import infer as script

    result = {"scan": ["a.nii.gz"], "volume_ml": 1.5, "warnings": [], "also": ["fluid", "spots"]}
    assert script.picture_caption(result, SimpleNamespace(model=["m"])) == "a.nii.gz, 1.50 mL with fluid and spots, m"
