"""A Hub in memory on loopback, which can be told to fail."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

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
        if match := re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?(?:/.*)?", path):
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
