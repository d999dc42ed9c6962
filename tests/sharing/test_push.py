"""Push and pull through the real client against a server on loopback that speaks the endpoints that it uses."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest
import torch
from conftest import run_script_file

from meshnet import hub
from meshnet.crossval.plan import PLAN
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.card import read_card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.networks.readme import dataset_readme, model_readme, public_source, public_training_data, safe_source
from meshnet.scans.intensity import SCALINGS
from meshnet.sharing import push

WRITER, READER = "hf_" + "w" * 30, "hf_" + "r" * 30
SOURCE = {"format": "bids", "path": "/home/someone/study", "suffix": ["T2w"], "labels": None}  # as prepare.py notes it
CARD = {"channels": ["T2w"], "classes": ["background", "lesion"], "training_data": {"source": SOURCE, "cases": 3}}


class Hub(ThreadingHTTPServer):
    """Repositories in memory: ``repos[(kind, id)] = {"private": …, "commits": [(sha, {path: bytes}), …]}``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.log, self.faults, self.down = {}, [], [], False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body=b"", **headers) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.close()
        self.close_connection = True

    def fault(self, kind: str) -> bool:
        if self.server.faults and self.server.faults[0] == kind:
            self.server.faults.pop(0)
            return True
        return False

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.server.log.append((self.command, path))
        if self.server.down:
            return self.hang_up()
        if token not in ("", WRITER, READER):
            return self.answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            return self.create(json.loads(body), token)
        if path == "/api/validate-yaml":
            if b"no-licence" in body:
                return self.answer(400, {"errors": [{"message": '"license" must be one of mit, …'}], "warnings": []})
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?(?:/.*)?", path):
            return self.api(*match.groups(), body, token)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve("dataset" if match[1] else "model", *match.groups()[1:], token)
        return self.answer(404, {"error": f"unknown endpoint {path}"})

    do_GET = do_POST = do_HEAD = handle_one

    def find(self, kind: str, name: str, revision: str, token: str):
        """(sha, files) or None after an error was answered."""
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo["private"] and not token):
            return self.answer(404 if token else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        commits = [c for c in repo["commits"] if revision in ("main", c[0])]
        if not commits:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return commits[-1]

    def create(self, request: dict, token: str) -> None:
        if token != WRITER:
            return self.answer(403, {"error": "You don't have the rights"})
        key = (request.get("type") or "model", f"{request.get('organization') or 'user'}/{request['name']}")
        address = {"url": f"{self.server.url}/{key[1]}", "name": key[1], "id": key[1]}
        if key in self.server.repos:
            return self.answer(409, {"error": "You already created this repo", **address})
        self.server.repos[key] = {"private": request.get("visibility") == "private", "commits": [("0" * 40, {})]}
        self.answer(200, address)

    def api(self, kind, name, action, revision, body, token) -> None:
        found = self.find(kind, name, revision or "main", token)
        if found is None:
            return
        sha, files = found
        if action in ("preupload", "commit") and token != WRITER:
            return self.answer(403, {"error": "no write access"})
        if action == "preupload":
            wanted = json.loads(body)["files"]
            return self.answer(200, {"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]})
        if action == "commit":
            if self.fault("commit breaks"):
                return self.hang_up()
            if self.fault("too many"):
                return self.answer(429, {"error": "slow down"})
            new = dict(files)
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    new[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del new[entry["value"]["path"]]
            sha = hashlib.sha1(body).hexdigest()
            self.server.repos[kind, name]["commits"].append((sha, new))
            return self.answer(200, {"success": True, "commitOid": sha, "hookOutput": "",
                                     "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})
        if action == "tree":
            return self.answer(200, [{"type": "file", "path": path, "size": len(content),
                                      "oid": hashlib.sha1(content).hexdigest()} for path, content in files.items()])
        self.answer(200, {"id": name, "sha": sha, "private": self.server.repos[kind, name]["private"],
                          "siblings": [{"rfilename": path} for path in files], "tags": []})

    def resolve(self, kind, name, revision, path, token) -> None:
        found = self.find(kind, name, revision, token)
        if found is None:
            return
        sha, files = found
        if path not in files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        content, status, extra = files[path], 200, {}
        etag = hashlib.sha1(content).hexdigest()
        if asked := re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range") or ""):
            start = int(asked[1])
            extra = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self.server.log.append(("RANGE", start))
            content, status = content[start:], 206
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes", **extra}
        if self.command == "GET" and path.endswith(".safetensors") and self.fault("download breaks"):
            self.send_response(status)
            for key, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return self.hang_up()
        self.answer(status, content, **headers)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A fresh Hub, the client pointed at it with an empty cache and a token that may write."""
    from huggingface_hub import constants

    instance = Hub()
    thread = threading.Thread(target=instance.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", instance.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        instance.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "WAIT_S", 0.01)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield instance
    instance.shutdown()
    instance.server_close()


@pytest.fixture
def run(tmp_path):
    """A run folder with what training and testing leave in it."""
    torch.manual_seed(0)
    model = MeshNet(channels=4, dilations=(1, 2))
    folder = tmp_path / "run"
    save_model(folder, model, CARD)
    (folder / "metrics.jsonl").write_text(
        '{"epoch": 1, "step": 2, "learning_rate": 0.1, "train_loss": 0.5, "val_loss": 0.4, "val_dice": 0.3}\n')
    (folder / "test_cases.csv").write_text("case,dice,avd,mcc\nsub-secret,0.5,0.2,0.6\nsub-hidden,0.7,0.4,nan\n")
    (folder / "config.yaml").write_text("run: {data_path: /home/someone/data}\nmodel: {name: meshnet}\n")
    (folder / "curves.png").write_bytes(b"\x89PNG a picture")
    (folder / "a_scan_lesion.png").write_bytes(b"\x89PNG of sub-secret")
    (folder / "state").mkdir()
    (folder / "state" / "optimizer.bin").write_bytes(b"0")
    return folder


def test_round_trip_gives_the_same_network(server, run):
    address = push.push_run(run, "user/stroke", private=True)
    repo = server.repos["model", "user/stroke"]
    assert repo["private"] and repo["commits"][-1][0] in address
    ours, _ = build.load_model(run)
    theirs, card = build.load_model("user/stroke")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.equal(ours(x), theirs(x)) and card["classes"] == CARD["classes"]
    assert torch.equal(ours(x), MeshNet.from_pretrained("user/stroke")(x))


def test_what_goes_up(server, run):
    push.push_run(run, "user/stroke")
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
    (run / "picture.png").write_bytes(b"\x89PNG chosen by the user")
    push.push_run(run, "user/stroke")
    files = server.repos["model", "user/stroke"]["commits"][-1][1]
    assert b"![](picture.png)" in files["README.md"] and files["picture.png"] == b"\x89PNG chosen by the user"


def test_a_second_push_leaves_nothing_stale_and_a_users_own_files(server, run):
    """In the same commit: between two commits, a reader would get one network's EMA with another's card."""
    shutil.copyfile(run / "model.safetensors", run / "model_ema.safetensors")
    (run / "picture.png").write_bytes(b"\x89PNG chosen by the user")
    push.push_run(run, "user/stroke")
    commits = server.repos["model", "user/stroke"]["commits"]
    assert {"model_ema.safetensors", "picture.png", "recipe.yaml"} <= set(commits[-1][1])
    commits[-1][1].update({"notes.md": b"mine", ".gitattributes": b"*", "other.png": b"mine"})
    for name in ("model_ema.safetensors", "picture.png", "config.yaml"):
        (run / name).unlink()
    count = len(commits)
    push.push_run(run, "user/stroke")
    assert len(commits) == count + 1
    (run / "recipe.yaml").write_text("run: {data_path: /home/someone/data}\nmodel: {name: meshnet}\n")
    push.push_run(run, "user/other")
    assert server.repos["model", "user/other"]["commits"][-1][1]["recipe.yaml"] == b"model:\n  name: meshnet\n"
    assert set(commits[-1][1]) == {"README.md", "config.json", "model.safetensors", "metrics.jsonl", "curves.png",
                                   "notes.md", ".gitattributes", "other.png"}


def test_no_card_says_where_data_lay_or_who_was_in_it():
    source = {**SOURCE, "include": ["subject=sub-secret"], "exclude": ["subject=sub-hidden"], "labels": "/a/l.json"}
    words = public_source(source)
    assert words == "bids (suffix ['T2w'])" and safe_source(source) == {"format": "bids", "suffix": ["T2w"]}
    for path in ("/home/someone/x", "~/x", "./x", "C:\\x", "../x", "file:///home/x"):
        for before, after in ((" ", " "), ("(", ")"), ("'", "'"), ("=", ",")):
            found = public_source(f"scans of{before}{path}{after}and more")
            assert found == f"scans of{before}a local path{after}and more"
    assert public_source("of /home/Bob Smith/sub-01/x.nii") == "of a local path"
    for harmless in ("heads alone (meshnet/synthetic.py)", "T1w / T2w of ~500 people", "a share of 3/4", "T2w/FLAIR"):
        assert public_source(harmless) == harmless
    known = {"source": source, "began_as": "/home/someone/run", "cases": 3}
    assert public_training_data(known) == {"source": words, "began_as": "a local path", "cases": 3}
    assert public_source({"path": "/x"}) == "not recorded"


def test_the_card_names_what_is_marked_alone(tmp_path):
    model = MeshNet(4, dilations=(1,), classes=3)
    save_model(tmp_path, model, {"channels": ["T2w"], "classes": ["background", "lesion", "fluid"]})
    for marks, words in ((None, "Segments lesion, fluid on T2w head scans."), ("lesion", "Segments lesion on T2w")):
        card = read_card(tmp_path) | {"marks": marks}
        assert words in model_readme(model, card, "user/stroke", tmp_path / "none.csv", None, "mit")
    info = {"cases": 2, "subjects": 2, "source": {"format": "synthetic"}, "channels": ["T2w"],
            "classes": card["classes"], "shape": [4, 4, 4],
            "voxel_mm": 4.0, "orientation": "LIA", "scaling": "minmax", "marks": "lesion"}
    assert "classes background, lesion, fluid of which lesion alone is marked, 4×4×4" in dataset_readme(
        info, "user/data", "mit")


def test_the_card_has_the_table_of_the_report(server, run, tmp_path):
    study = tmp_path / "study"
    inside = study / "runs" / "meshnet4" / "fold0_restart0"
    shutil.copytree(run, inside)
    (study / "report").mkdir()
    (study / PLAN).write_text("{}")
    (study / "report" / "table.md").write_text("| Model | DICE |\n|---|---:|\n| meshnet4 | **0.612** |\n")

    def readme():
        return server.repos["model", "user/stroke"]["commits"][-1][1]["README.md"].decode()

    push.push_run(inside, "user/stroke")
    assert "### Cross-validation\n\n| Model | DICE |" in readme() and "**0.612**" in readme()
    push.push_run(run, "user/stroke")
    assert "Cross-validation" not in readme()
    push.push_run(run, "user/stroke", report=study)
    assert "**0.612**" in readme()
    with pytest.raises(UserError, match=r"has no report/table\.md"):
        push.push_run(run, "user/stroke", report=tmp_path)


def test_a_revision_is_the_network_of_that_commit(server, run):
    push.push_run(run, "user/stroke")
    first = server.repos["model", "user/stroke"]["commits"][-1][0]
    before, card = build.load_model(run)
    after = MeshNet(channels=4, dilations=(1, 2))
    save_model(run, after, card)
    push.push_run(run, "user/stroke")
    weights = [build.load_model(name)[0].head.weight for name in (f"user/stroke@{first}", "user/stroke")]
    assert torch.equal(weights[0], before.head.weight) and torch.equal(weights[1], after.head.weight)
    with pytest.raises(UserError, match="no such revision"):
        hub.pull("user/stroke@" + "ab" * 20)


def test_refused_tokens_and_missing_rights(server, run, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    with pytest.raises(UserError, match="refuses the token") as refused:
        push.push_run(run, "user/stroke")
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(UserError, match="no right"):
        push.push_run(run, "user/stroke")
    printed = "".join(capfd.readouterr()) + str(refused.value)
    assert not server.repos and "x" * 30 not in printed and READER not in printed


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(server, run, tmp_path, monkeypatch):
    for folder, name, message in ((run, "user/stroke@main", "expected user/name"), (run, "stroke", "user/name"),
                                  (tmp_path / "none", "user/stroke", "none: not found; expected a run folder"),
                                  (tmp_path, "user/stroke", r"config\.json: not found")):
        with pytest.raises(UserError, match=message):
            push.push_run(folder, name)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="needs a token; log in with: hf auth login"):
        push.push_run(run, "user/stroke")
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
    assert found.returncode == 2 and "refuses the token" in found.stderr and found.stderr.count("\n") == 1
    assert f"share.py push {tmp_path / 'run'} user/stroke" in found.stderr and not server.repos
    run_script_file("train.py", *common, "user/stroke")
    files = server.repos["model", "user/stroke"]["commits"][-1][1]
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert b"| val_dice |" in files["README.md"] and str(tmp_path).encode() not in b"".join(files.values())


def test_private_repository(server, run, monkeypatch):
    push.push_run(run, "user/stroke", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="private"):
        hub.pull("user/stroke")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (hub.pull("user/stroke") / "config.json").is_file()


def test_connection_that_breaks_while_pushing(server, run):
    server.faults = ["commit breaks"]
    push.push_run(run, "user/stroke")
    assert "model.safetensors" in server.repos["model", "user/stroke"]["commits"][-1][1]
    server.faults = ["too many"]
    push.push_run(run, "user/stroke3")
    with pytest.raises(UserError, match='"license" must be one of mit, …; choose another --licence'):
        push.push_run(run, "user/stroke", licence="no-licence")
    server.faults = ["commit breaks"] * 50
    with pytest.raises(UserError, match="connection to the Hub failed"):
        push.push_run(run, "user/stroke2")


def test_the_hubs_file_store_failing_is_one_line(monkeypatch):
    from huggingface_hub.errors import XetDownloadError

    calls = []

    def fail():
        calls.append(1)
        raise XetDownloadError("cas: broken\nmore")

    monkeypatch.setattr(hub, "WAIT_S", 0)
    with pytest.raises(UserError, match=r"user/x: the Hub's file store failed \(cas: broken\); the same"), \
            hub.plain_errors("user/x"):
        hub.with_retries(fail)
    assert len(calls) == hub.ATTEMPTS


def test_connection_that_breaks_while_pulling(server, run, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)  # 10 MB as shipped, more than this whole model
    push.push_run(run, "user/stroke")
    server.faults = ["download breaks"]
    build.load_model("user/stroke")
    assert any(entry[0] == "RANGE" and entry[1] > 0 for entry in server.log), "it began again instead of going on"


def test_without_a_network_the_cache_serves(server, run, monkeypatch):
    from huggingface_hub import constants

    push.push_run(run, "user/stroke")
    folder = hub.pull("user/stroke")
    server.shutdown()
    server.server_close()
    server.down = True  # connections that are kept open end as well
    assert hub.pull("user/stroke") == folder
    with pytest.raises(UserError, match="not in the cache"):
        hub.pull("user/other")
    with pytest.raises(UserError, match="the connection to the Hub failed"):
        push.push_run(run, "user/stroke")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.pull("user/stroke") == folder
    with pytest.raises(UserError, match="not in the cache"):
        hub.pull("user/other")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        push.push_run(run, "user/stroke")


def test_a_repository_that_is_no_model(server, run):
    push.push_run(run, "user/stroke")
    server.repos["model", "user/stroke"]["commits"].append(("1" * 40, {"README.md": b"hello", "model.bin": b"pickle"}))
    with pytest.raises(UserError, match=r"config\.json: not found"):
        build.load_model("user/stroke")
    assert not any("model.bin" in str(entry) for entry in server.log), "a foreign binary was downloaded"


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
    assert found.returncode == 2 and "data/typo: no such folder here, and as a dataset on the Hub" in found.stderr
    assert hub.data_folder("recipes/none/x") == "recipes/none/x" and hub.data_folder(str(tiny_data)) == str(tiny_data)


def test_a_folder_here_goes_before_a_name_on_the_hub(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "cases").mkdir(parents=True)
    assert hub.data_folder("user/cases") == "user/cases" and not server.log


@pytest.mark.parametrize("name", ["stroke", "a/b/c", "/b"])
def test_names(name):
    with pytest.raises(UserError, match="user/name"):
        hub.split_name(name)


def test_a_public_model_is_fetched_pinned_and_kept(shared_data, tmp_path, monkeypatch):
    from meshnet.sharing import published

    model = published.PUBLIC["brainchop-tissue-light"]
    source = tmp_path / "source" / model.commit / model.folder
    source.mkdir(parents=True)
    for name in ("model.json", model.binary):
        (source / name).write_bytes((shared_data / "brainchop" / name).read_bytes())
    monkeypatch.setattr(published, "SOURCE", (tmp_path / "source").as_uri())
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "kept"))
    network, card = build.load_model(published.find("brainchop-tissue-light"))
    assert network.arguments["channels"] == 5 and card["scaling"] == "minmax" and card["orientation"] == "LIA"
    with monkeypatch.context() as changed:  # another commit or scaling under the same name is another model
        other = dataclasses.replace(model, scaling="brainchop_quantile")
        changed.setitem(published.PUBLIC, "brainchop-tissue-light", other)
        assert build.load_model(published.find("brainchop-tissue-light"))[1]["scaling"] == "brainchop_quantile"
        changed.setitem(published.PUBLIC, "brainchop-tissue-light", dataclasses.replace(model, commit="0" * 40))
        with pytest.raises(UserError, match="could not be downloaded"):
            build.load_model(published.find("brainchop-tissue-light"))
    (source / "model.json").unlink()
    assert build.load_model(published.find("brainchop-tissue-light"))[1] == card  # from the cache
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "second"))
    with pytest.raises(UserError, match="could not be downloaded"):
        build.load_model(published.find("brainchop-tissue-light"))
    (source / "model.json").write_bytes(b"{}")  # what cannot be read is fetched anew
    with pytest.raises(UserError, match="not a TensorFlow"):
        build.load_model(published.find("brainchop-tissue-light"))
    (source / "model.json").write_bytes((shared_data / "brainchop" / "model.json").read_bytes())
    assert build.load_model(published.find("brainchop-tissue-light"))[1] == card
    (source / model.binary).write_bytes(b"\0" * 22392)
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "third"))
    with pytest.raises(UserError, match="sha256 differs"):
        build.load_model(published.find("brainchop-tissue-light"))
    assert {model.scaling or "minmax" for model in published.PUBLIC.values()} <= set(SCALINGS)
    assert "brainchop-t2-lesion" in published.list_models()
