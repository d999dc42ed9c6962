"""Push through the real client to a server on loopback that speaks the endpoints that it uses."""

import json
import shutil

import numpy as np
import pytest
import torch
from cascades import head_file, write_cascade
from conftest import run_script_file
from model_folders import edit
from stand_in_hub import CARD, READER, SOURCE, WRITER

from meshnet import hub, segment_scan
from meshnet.crossval.plan import PLAN
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.card import Card
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing import push


def test_round_trip_gives_the_same_network(server, run_folder):
    address = push.push_run(run_folder, "user/stroke", private=True)
    repo = server.repos["model", "user/stroke"]
    assert repo["private"] and repo["commits"][-1][0] in address
    ours, _ = build.load_model(run_folder)
    theirs, card = build.load_model("user/stroke")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.equal(ours(x), theirs(x)) and card.classes == CARD["classes"]
    assert torch.equal(ours(x), MeshNet.from_pretrained("user/stroke")(x))


def test_a_network_in_memory_is_pushed_with_its_card(server):
    network = MeshNet(channels=4, dilations=(1, 2), in_channels=1).eval()
    address = network.push_to_hub("user/mine", Card(["FLAIR"], ["background", "lesion"], voxel_mm=2.0))
    repo = server.repos["model", "user/mine"]
    sha, files = repo["commits"][-1]
    assert repo["private"] and sha in address
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert b"user/mine" in files["README.md"] and b"FLAIR" in files["README.md"]
    assert json.loads(files["config.json"])["voxel_mm"] == 2.0
    pulled = MeshNet.from_pretrained("user/mine")
    assert pulled.card.channels == ["FLAIR"] and pulled.arguments == network.arguments
    assert all(torch.equal(pulled.state_dict()[key], value) for key, value in network.state_dict().items())
    pulled.push_to_hub("user/again")  # with the card that it came with
    assert server.repos["model", "user/again"]["commits"][-1][1]["config.json"] == files["config.json"]
    with pytest.raises(UserError, match="expected user/name"):
        network.push_to_hub("user/mine@main")


def test_a_cascade_in_memory_is_pushed_without_paths_of_either_network(server, tmp_path):
    known = {"source": {"format": "bids", "path": "/home/someone/scans"}, "cases": 3}
    folder = write_cascade(tmp_path / "two", training_data=known)
    edit(folder / "first/config.json", training_data=known)
    network, card = build.load_model(folder)
    network.push_to_hub("user/two", card)
    files = server.repos["model", "user/two"]["commits"][-1][1]
    assert {"first/config.json", "first/model.safetensors"} < set(files)
    assert b"someone" not in b"".join(files.values()) and b"bids" in files["first/config.json"]
    network.first = None
    with pytest.raises(UserError, match="push_to_hub user/three: found no first network of this cascade") as refused:
        network.push_to_hub("user/three", card)
    assert "\n" not in str(refused.value) and ("model", "user/three") not in server.repos


def test_what_goes_up(server, run_folder):
    push.push_run(run_folder, "user/stroke")
    files = server.repos["model", "user/stroke"]["commits"][-1][1]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "metrics.jsonl", "recipe.yaml",
                          "curves.png"}
    everything = b"".join(files.values())
    for secret in (b"sub-secret", b"/home/someone", WRITER.encode()):
        assert secret not in everything
    readme = files["README.md"].decode()
    assert "| Dice (lesion) | 0.600 (0.141), 2 cases |" in readme and "| MCC | 0.600 (0.000), 1 cases |" in readme
    for expected in ("license: \"mit\"", "infer.py scan.nii.gz", "user/stroke", "must not be used for diagnosis",
                     "2503.05531", "![](curves.png)", "source: bids (suffix ['T2w'])", "LIA"):
        assert expected in readme, expected
    (run_folder / "picture.png").write_bytes(b"\x89PNG chosen by the user")
    push.push_run(run_folder, "user/stroke")
    files = server.repos["model", "user/stroke"]["commits"][-1][1]
    assert b"![](picture.png)" in files["README.md"] and files["picture.png"] == b"\x89PNG chosen by the user"


def test_a_second_push_leaves_nothing_stale_and_a_users_own_files(server, run_folder):
    """In the same commit: between two commits, a reader would get one network's EMA with another's card."""
    shutil.copyfile(run_folder / "model.safetensors", run_folder / "model_ema.safetensors")
    (run_folder / "picture.png").write_bytes(b"\x89PNG chosen by the user")
    push.push_run(run_folder, "user/stroke")
    commits = server.repos["model", "user/stroke"]["commits"]
    assert {"model_ema.safetensors", "picture.png", "recipe.yaml"} <= set(commits[-1][1])
    commits[-1][1].update({"notes.md": b"mine", ".gitattributes": b"*", "other.png": b"mine"})
    for name in ("model_ema.safetensors", "picture.png", "config.yaml"):
        (run_folder / name).unlink()
    count = len(commits)
    push.push_run(run_folder, "user/stroke")
    assert len(commits) == count + 1
    (run_folder / "recipe.yaml").write_text("run: {data_path: /home/someone/data}\nmodel: {name: meshnet}\n")
    push.push_run(run_folder, "user/other")
    assert server.repos["model", "user/other"]["commits"][-1][1]["recipe.yaml"] == b"model:\n  name: meshnet\n"
    assert set(commits[-1][1]) == {"README.md", "config.json", "model.safetensors", "metrics.jsonl", "curves.png",
                                   "notes.md", ".gitattributes", "other.png"}


def test_the_card_has_the_table_of_the_report(server, run_folder, tmp_path):
    study = tmp_path / "study"
    inside = study / "runs" / "meshnet4" / "fold0_restart0"
    shutil.copytree(run_folder, inside)
    (study / "report").mkdir()
    (study / PLAN).write_text("{}")
    (study / "report" / "table.md").write_text("| Model | DICE |\n|---|---:|\n| meshnet4 | **0.612** |\n")

    def readme():
        return server.repos["model", "user/stroke"]["commits"][-1][1]["README.md"].decode()

    push.push_run(inside, "user/stroke")
    assert "### Cross-validation\n\n| Model | DICE |" in readme() and "**0.612**" in readme()
    push.push_run(run_folder, "user/stroke")
    assert "Cross-validation" not in readme()
    push.push_run(run_folder, "user/stroke", report=study)
    assert "**0.612**" in readme()
    with pytest.raises(UserError, match=r"has no report/table\.md"):
        push.push_run(run_folder, "user/stroke", report=tmp_path)


def test_refused_tokens_and_missing_rights(server, run_folder, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    with pytest.raises(UserError, match="rejects the token") as refused:
        push.push_run(run_folder, "user/stroke")
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(UserError, match="not allowed to do this"):
        push.push_run(run_folder, "user/stroke")
    printed = "".join(capfd.readouterr()) + str(refused.value)
    assert not server.repos and "x" * 30 not in printed and READER not in printed


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(server, run_folder, tmp_path, monkeypatch):
    for folder, name, message in ((run_folder, "user/stroke@main", "expected user/name"),
                                  (run_folder, "stroke", "user/name"),
                                  (tmp_path / "none", "user/stroke", "none: not found; expected a run folder"),
                                  (tmp_path, "user/stroke", r"config\.json: not found")):
        with pytest.raises(UserError, match=message):
            push.push_run(folder, name)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="needs a token; log in with: hf auth login"):
        push.push_run(run_folder, "user/stroke")
    assert not server.log


def test_training_pushes_when_it_is_done(server, tiny_data, tmp_path, monkeypatch):
    """A name or token that cannot work is refused before training; a run is pushed at its end, not before, and once
    more by the same command; what fails then says how to push later."""
    common = ("--recipe", "recipes/meshnet5.yaml", "--data", tiny_data, "--data.workers", 0, "--training.max_epochs", 2,
              "--model.dilations", "1", "--run_dir", tmp_path / "run", "--push_to_hub")
    found = run_script_file("train.py", *common, "stroke", check=False)
    assert found.returncode == 2 and "user/name" in found.stderr and not (tmp_path / "run").exists()
    with monkeypatch.context() as changed:
        changed.setenv("HF_TOKEN", "")
        found = run_script_file("train.py", *common, "user/stroke", check=False)
    assert found.returncode == 2 and "needs a token" in found.stderr and not (tmp_path / "run").exists()
    found = run_script_file("train.py", *common, "user/stroke", "--stop_epoch", 1)
    assert "not pushed" in found.stderr and not server.repos
    with monkeypatch.context() as changed:
        changed.setenv("HF_TOKEN", "hf_" + "x" * 30)
        found = run_script_file("train.py", *common, "user/stroke", check=False)
    assert found.returncode == 2 and "rejects the token" in found.stderr and found.stderr.count("\n") == 1
    assert f"share.py push {tmp_path / 'run'} user/stroke" in found.stderr and not server.repos
    run_script_file("train.py", *common, "user/stroke")
    files = server.repos["model", "user/stroke"]["commits"][-1][1]
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert b"| val_dice |" in files["README.md"] and str(tmp_path).encode() not in b"".join(files.values())


def test_connection_that_breaks_while_pushing(server, run_folder):
    server.faults = ["commit breaks"]
    push.push_run(run_folder, "user/stroke")
    assert "model.safetensors" in server.repos["model", "user/stroke"]["commits"][-1][1]
    server.faults = ["too many"]
    push.push_run(run_folder, "user/stroke3")
    with pytest.raises(UserError, match='"license" must be one of mit, …; choose another --licence'):
        push.push_run(run_folder, "user/stroke", licence="no-licence")
    server.faults = ["commit breaks"] * 50
    with pytest.raises(UserError, match="connection to the Hub failed"):
        push.push_run(run_folder, "user/stroke2")


def test_prepared_dataset_round_trip(server, tmp_path):
    from datasets import Dataset, load_from_disk

    folder = tmp_path / "prepared"
    Dataset.from_dict({"case": ["a", "b"], "image": [b"12", b"34"]}).save_to_disk(folder)
    info = {"source": SOURCE, "channels": ["T2w"], "classes": ["background", "lesion"], "shape": [2, 2, 2],
            "voxel_mm": 4.0, "orientation": "LIA", "scaling": "conform_uint8",
            "cases": 2, "subjects": 2}
    (folder / "prepared.json").write_text(json.dumps(info))
    (folder / "splits.json").write_text(json.dumps({"folds": [{"test": ["a"]}, {"test": ["b"]}]}))
    push.push_dataset(folder, "user/cases")
    assert server.repos["dataset", "user/cases"]["private"]
    hub.copy_to(hub.pull("user/cases", "dataset"), tmp_path / "copy")
    assert load_from_disk(tmp_path / "copy").to_dict() == load_from_disk(folder).to_dict()
    pulled = json.loads((tmp_path / "copy" / "prepared.json").read_text())
    assert pulled == info | {"source": {"format": "bids", "suffix": ["T2w"]}}  # no path, no filters
    readme = (tmp_path / "copy" / "README.md").read_text()
    assert "2 cases of 2 subjects, prepared from bids (suffix ['T2w']): channels T2w" in readme
    for taken in (tmp_path / "copy", tmp_path / "copy" / "README.md"):
        with pytest.raises(UserError, match="not empty"):
            hub.copy_to(folder, taken)
    commits = server.repos["dataset", "user/cases"]["commits"]
    count, server.log[:] = len(commits), []
    with pytest.raises(UserError, match="choose another --licence"):
        push.push_dataset(folder, "user/cases", licence="no-licence")
    assert len(commits) == count and not any("preupload" in path for _, path in server.log)
    shutil.rmtree(folder)
    Dataset.from_dict({"case": ["a"], "image": [b"12"]}).save_to_disk(folder, num_shards=1)
    (folder / "data-00000-of-00001.arrow").rename(folder / "other.arrow")
    (folder / "prepared.json").write_text(json.dumps(info))
    commits[-1][1]["notes.md"] = b"mine"
    push.push_dataset(folder, "user/cases")
    assert {name for name in commits[-1][1] if name.endswith(".arrow")} == {"other.arrow"}
    assert "notes.md" in commits[-1][1] and len(commits) == count + 1


def test_training_on_a_data_set_of_the_hub(server, tiny_data, tmp_path):
    """Under its name, as prepared; what is on disk goes before the Hub, and a wrong path is said to be one."""
    push.push_dataset(tiny_data, "user/cases")
    common = ("--recipe", "recipes/meshnet5.yaml", "--data.workers", 0, "--training.max_epochs", 1, "--model.dilations",
              "1")
    run_script_file("train.py", *common, "--data", tiny_data, "--run_dir", tmp_path / "disk")
    run_script_file("train.py", *common, "--data", "user/cases", "--run_dir", tmp_path / "hub")
    run_script_file("train.py", "--test", "--run_dir", tmp_path / "hub")
    here, there = (build.load_model(tmp_path / name)[0] for name in ("disk", "hub"))
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters()))
    found = run_script_file("train.py", *common, "--data", "data/typo", "--run_dir", tmp_path / "x", check=False)
    assert found.returncode == 2 and "data/typo: no such folder, and as a dataset on the Hub" in found.stderr
    assert hub.data_folder("recipes/none/x") == "recipes/none/x" and hub.data_folder(str(tiny_data)) == str(tiny_data)


@pytest.mark.parametrize("mirror", [False, True])
def test_both_networks_of_a_cascade_go_up_and_come_back(server, tmp_path, mirror):
    folder = write_cascade(tmp_path / "two", mirror=mirror, training_data={"source": "/home/someone/data"})
    edit(folder / "first" / "config.json", training_data={"source": "/home/someone/first"})
    (folder / "first" / "notes.txt").write_text("sub-secret")
    push.push_run(folder, "user/two")
    files = server.repos["model", "user/two"]["commits"][-1][1]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "first/config.json",
                          "first/model.safetensors"}
    assert b"/home/someone" not in b"".join(files.values()) and b"voxels of 16 mm" in files["README.md"]
    scan = head_file(tmp_path / "a.nii.gz")
    run_script_file("share.py", "pull", "user/two", tmp_path / "pulled")
    masks = [np.asarray(segment_scan(scan, name).mask.dataobj) for name in (folder, "user/two", tmp_path / "pulled")]
    assert masks[0].any() and all(np.array_equal(mask, masks[0]) for mask in masks)
    push.push_run(folder / "first", "user/two")  # a single network in its place leaves nothing of the cascade
    assert not any(name.startswith("first") for name in server.repos["model", "user/two"]["commits"][-1][1])


def test_a_data_set_for_a_second_network_takes_the_first_one_along(server, tmp_path):
    folder = tmp_path / "prepared"
    info = {"source": SOURCE, "channels": ["T1w"], "classes": ["background", "lesion"], "shape": [2, 2, 2],
            "voxel_mm": 4.0, "orientation": "LIA", "scaling": "lesions_bright", "cases": 2, "subjects": 2}
    write_cascade(folder, training_data={})
    edit(folder / "first" / "config.json", training_data={"source": "/home/someone/first"})
    (folder / "first" / "notes.json").write_text("sub-secret")
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "prepared.json").write_text(json.dumps(info | {"first": ["lesion", "fluid"]}))
    push.push_dataset(folder, "user/cases")
    files = server.repos["dataset", "user/cases"]["commits"][-1][1]
    assert set(files) == {"README.md", "prepared.json", "first/config.json", "first/model.safetensors"}
    assert b"/home/someone" not in files["first/config.json"] and b"as further channels" in files["README.md"]
    pulled = build.load_model(hub.pull("user/cases", "dataset") / "first")
    assert pulled.card.classes == ["background", "lesion", "fluid"]
