"""Pull from the Hub: revisions, private names, the cache, and lines that break."""

import pytest
import torch
from stand_in_hub import READER

from meshnet import hub
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing import push


def test_a_revision_is_the_network_of_that_commit(server, run_folder):
    push.push_run(run_folder, "user/stroke")
    first = server.repos["model", "user/stroke"]["commits"][-1][0]
    before, card = build.load_model(run_folder)
    after = MeshNet(channels=4, dilations=(1, 2))
    save_model(run_folder, after, card)
    push.push_run(run_folder, "user/stroke")
    weights = [build.load_model(name)[0].head.weight for name in (f"user/stroke@{first}", "user/stroke")]
    assert torch.equal(weights[0], before.head.weight) and torch.equal(weights[1], after.head.weight)
    with pytest.raises(UserError, match="no such revision"):
        hub.pull("user/stroke@" + "ab" * 20)


def test_private_repository(server, run_folder, monkeypatch):
    push.push_run(run_folder, "user/stroke", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="private"):
        hub.pull("user/stroke")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (hub.pull("user/stroke") / "config.json").is_file()


def test_the_hubs_file_store_failing_is_one_line(monkeypatch):
    from huggingface_hub.errors import XetDownloadError

    calls = []

    def fail():
        calls.append(1)
        raise XetDownloadError("cas: broken\nmore")

    monkeypatch.setattr(hub, "WAIT_S", 0)
    with pytest.raises(UserError, match=r"user/x: the Hub's file storage failed \(cas: broken\); the same"), \
            hub.plain_errors("user/x"):
        hub.with_retries(fail)
    assert len(calls) == hub.ATTEMPTS


def test_connection_that_breaks_while_pulling(server, run_folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)  # 10 MB as shipped, more than this whole model
    push.push_run(run_folder, "user/stroke")
    server.faults = ["download breaks"]
    build.load_model("user/stroke")
    assert any(entry[0] == "RANGE" and entry[1] > 0 for entry in server.log), "it began again instead of going on"


def test_without_a_network_the_cache_serves(server, run_folder, monkeypatch):
    from huggingface_hub import constants

    push.push_run(run_folder, "user/stroke")
    folder = hub.pull("user/stroke")
    server.shutdown()
    server.server_close()
    server.down = True  # connections that are kept open end as well
    assert hub.pull("user/stroke") == folder
    with pytest.raises(UserError, match="not in the cache"):
        hub.pull("user/other")
    with pytest.raises(UserError, match="the connection to the Hub failed"):
        push.push_run(run_folder, "user/stroke")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.pull("user/stroke") == folder
    with pytest.raises(UserError, match="not in the cache"):
        hub.pull("user/other")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        push.push_run(run_folder, "user/stroke")


def test_a_repository_that_is_no_model(server, run_folder):
    push.push_run(run_folder, "user/stroke")
    server.repos["model", "user/stroke"]["commits"].append(("1" * 40, {"README.md": b"hello", "model.bin": b"pickle"}))
    with pytest.raises(UserError, match=r"config\.json: not found"):
        build.load_model("user/stroke")
    assert not any("model.bin" in str(entry) for entry in server.log), "a foreign binary was downloaded"


def test_a_folder_here_goes_before_a_name_on_the_hub(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "cases").mkdir(parents=True)
    assert hub.data_folder("user/cases") == "user/cases" and not server.log


@pytest.mark.parametrize("name", ["stroke", "a/b/c", "/b"])
def test_names(name):
    with pytest.raises(UserError, match="user/name"):
        hub.split_name(name)
