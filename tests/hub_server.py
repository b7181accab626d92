"""The API of a model hub, as far as huggingface_hub asks for it when it pushes and fetches a repository; on loopback, in memory.

Written after what huggingface_hub sends: repositories, branches, preupload, Git LFS (basic transfers), commits as NDJSON, trees
and files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


class Hub:
    """Repositories by name, each with branches of files; `faults` are statuses that the next commits are answered with."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repos: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.commits: list[dict[str, Any]] = []
        self.uploads: list[str] = []  # sha256 of what came by LFS
        self.on_upload: Callable[[], object] | None = None  # called in place of keeping what comes so

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo]["branches"][branch]

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> None:
        self.repos[repo] = {"private": private, "branches": {"main": {".gitattributes": b"", **files}}}

    def sha(self, repo: str, branch: str) -> str:
        held = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files(repo, branch).items())
        return hashlib.sha1(json.dumps(held).encode()).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that listens on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  names of http.server

    def _answer(self) -> None:
        if self.hub.on_upload and self.path.startswith("/lfs/"):
            self.close_connection = True
            return self._cut_off(self.hub.on_upload)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        way = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if way[0] == "lfs":
            self.hub.blobs[way[1]] = body
            self.hub.uploads.append(way[1])
            return self._send(200, {})
        if way[:2] == ["api", "validate-yaml"]:
            known = "license:" in json.loads(body)["content"]
            return self._send(200, {"errors": [] if known else [{"message": "no license"}], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if way[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if way[:2] == ["api", "models"]:
            return self._of_repo("/".join(way[2:4]), way[4:], body)
        if way[2:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        return self._file("/".join(way[:2]), way[3], "/".join(way[4:]))

    def _cut_off(self, why: Callable[[], object]) -> None:
        """An upload of which a part was read and nothing is answered."""
        self.rfile.read(1)
        why()

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repos:
            return self._send(409, {"error": "You already created this model repo"})
        self.hub.add(name, {}, private=bool(asked.get("private") or asked.get("visibility") == "private"))
        return self._send(200, {"name": name, "id": name, "url": f"{self.hub.address}/{name}"})

    def _of_repo(self, repo: str, way: list[str], body: bytes) -> None:
        known = self.hub.repos.get(repo)
        if known is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        verb, branch = (way or ["info"])[0], self._branch(repo, (way[1:] or ["main"])[0])
        if verb == "refs":
            refs = [
                {"name": one, "ref": f"refs/heads/{one}", "targetCommit": self.hub.sha(repo, one)}
                for one in known["branches"]
            ]
            return self._send(200, {"branches": refs, "tags": [], "converts": [], "pullRequests": []})
        if verb == "branch":
            known["branches"].setdefault(branch, dict(known["branches"]["main"]))
            return self._send(200, {})
        if branch not in known["branches"]:
            return self._send(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        files, sha = known["branches"][branch], self.hub.sha(repo, branch)
        if verb == "tree":
            return self._send(
                200,
                [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()],
            )
        if verb == "preupload":
            return self._send(200, {"files": [_mode(one["path"], files) for one in json.loads(body)["files"]]})
        if verb == "commit":
            return self._commit(repo, branch, sha, [json.loads(line) for line in body.splitlines()])
        siblings = [{"rfilename": name} for name in files]
        return self._send(200, {"id": repo, "sha": sha, "private": known["private"], "siblings": siblings, "tags": []})

    def _commit(self, repo: str, branch: str, sha: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.faults:
            return self._send(self.hub.faults.pop(0), {"error": "not now"})
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, sha):
            return self._send(412, {"error": "A commit has happened since"})
        files = self.hub.files(repo, branch)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        self.hub.commits.append({"repo": repo, "branch": branch, "summary": header["summary"], "lines": lines[1:]})
        oid = self.hub.sha(repo, branch)
        return self._send(200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid})

    def _branch(self, repo: str, revision: str) -> str:
        """The branch that a revision names, by itself or by its commit."""
        known = self.hub.repos.get(repo, {"branches": {}})["branches"]
        return next((one for one in known if revision in (one, self.hub.sha(repo, one))), revision)

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [{"oid": one["oid"], "size": one["size"]} for one in asked["objects"]]
        for one in objects:
            if one["oid"] not in self.hub.blobs:
                one["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _file(self, repo: str, branch: str, name: str) -> None:
        known = self.hub.repos.get(repo, {"branches": {}})["branches"]
        branch = self._branch(repo, branch)
        if name not in known.get(branch, {}):
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        data = known[branch][name]
        return self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": self.hub.sha(repo, branch)})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """How a file is to be sent, and what the hub has of that name: by its sha256 where it is kept by LFS."""
    large = name.endswith((".onnx", ".bin"))
    known = (hashlib.sha256(files[name]).hexdigest() if large else _oid(files[name])) if name in files else None
    return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": known}


def _oid(data: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
