"""A local Hub: enough of the HTTP interface to create, push, branch, list, load and stream, and to fail.

Repositories live in memory. ``requests`` records every request, ``bodies`` every byte received, in order.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet")
ALWAYS = 1_000_000
NO_COMMIT = "0" * 40


@dataclass
class Fault:
    """A failure of requests whose ``"METHOD /path"`` contains a match of ``where``.

    Attributes:
        where: A regular expression.
        status: The status of the answer. 0: the connection is reset, after half of the body has been read.
        headers: The headers of that answer.
        message: The text of that answer.
        times: How many requests fail; later ones are served.
        after: The request is served, but its answer is lost.
        once_there: The SHA-256 of a large file that must arrive before the answer is sent; requests run in parallel.
        fired: How many requests failed.
    """

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "a fault of this Hub"
    times: int = ALWAYS
    after: bool = False
    once_there: str | None = None
    fired: int = 0


class Hub:
    """The state of the server.

    Attributes:
        user: Owner of repositories that are created without one.
        owners: Namespaces in which the token may write.
        token: The only token that may write.
        repositories: Key -> commits of all branches, oldest first; each has ``id``, ``message``, ``files`` (path ->
            bytes), and ``branch`` where that is not main. The key is ``"someone/name"`` of a model,
            ``"datasets/someone/name"`` of a dataset.
        branches: (key, branch) -> the commit that the branch starts from.
        private: Keys of private repositories.
        objects: SHA-256 -> bytes of large files that were uploaded.
        requests: ``"POST /api/repos/create"``, ...
        bodies: The bodies of all requests.
        faults: Failures to simulate.
    """

    def __init__(self, user: str, token: str) -> None:
        self.user, self.token = user, token
        self.owners = (user, "club")
        self.repositories: dict[str, list[dict[str, Any]]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.faults: list[Fault] = []
        self.url = ""

    def asked(self, where: str) -> int:
        """How many requests contain a match of ``where``."""
        return sum(re.search(where, request) is not None for request in self.requests)

    def find(self, key: str, revision: str = "main") -> dict[str, Any] | None:
        """The commit of an id, or the newest of a branch; None if there is no such revision."""
        commits = self.repositories[key]
        for commit in reversed(commits):
            if revision in (commit["id"], commit.get("branch", "main")):
                return commit
        if (key, revision) in self.branches:
            return self.find(key, self.branches[key, revision])
        if revision in ("main", NO_COMMIT):
            return {"id": NO_COMMIT, "message": "", "files": {}}
        return None

    def files(self, key: str, revision: str = "main") -> dict[str, bytes]:
        """The files of the newest commit of a branch."""
        commit = self.find(key, revision)
        return {} if commit is None else commit["files"]

    def commit(self, key: str, branch: str, lines: list[dict[str, Any]], *, new_branch: str | None = None) -> str:
        """Applies the lines of a commit request; returns the commit's id."""
        files = dict(self.files(key, branch))
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise ValueError(f"this Hub knows no {line['key']}")
        number = len(self.repositories[key]) + 1
        commit = {"id": hashlib.sha1(f"{key} {number}".encode()).hexdigest(), "message": message, "files": files}
        if (new_branch or branch) != "main":
            commit["branch"] = new_branch or branch
        self.repositories[key].append(commit)
        return commit["id"]


def key_of(kind: str, repo_id: str) -> str:
    """A key of ``Hub.repositories``; ``kind`` is ``model`` or ``dataset``."""
    return repo_id if kind == "model" else f"{kind}s/{repo_id}"


def oid_of(name: str, content: bytes) -> str:
    """The id that the Hub gives the content of a file."""
    if name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO = r"([^/]+/[^/]+)"
KIND = r"(model|dataset)s"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every answer takes 40 ms longer

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        asked = f"{self.command} {unquote(path)}"
        fault = next((fault for fault in self.hub.faults if fault.times and re.search(fault.where, asked)), None)
        if fault is not None:
            fault.times -= 1
            fault.fired += 1
            if not fault.status and not fault.after:
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self.hub.requests.append(asked)
                return self._reset()
        body = self._body()
        self.hub.requests.append(asked)
        self.hub.bodies.append(body)
        if fault is not None and fault.once_there:
            end = time.monotonic() + 30
            while fault.once_there not in self.hub.objects and time.monotonic() < end:
                time.sleep(0.01)
        if fault is not None and not fault.after:
            return self._json(
                fault.status, {"error": fault.message}, {"X-Error-Message": fault.message, **fault.headers}
            )
        self.lost = fault is not None
        for method, pattern, answer in (
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", rf"/api/{KIND}/{REPO}/preupload/([^/]+)", self._preupload),
            ("POST", rf"/api/{KIND}/{REPO}/branch/([^/]+)", self._branch),
            ("POST", rf"/(?:(dataset)s/)?{REPO}\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/lfs/([0-9a-f]{64})", self._put),
            ("POST", rf"/api/{KIND}/{REPO}/commit/([^/]+)", self._commit),
            ("POST", rf"/api/{KIND}/{REPO}/paths-info/([^/]+)", self._paths_info),
            ("GET", rf"/api/{KIND}/{REPO}/tree/([^/]+)(?:/.*)?", self._tree),
            ("GET", rf"/api/{KIND}/{REPO}(?:/revision/([^/]+))?", self._info),
            ("GET", rf"/(?:(dataset)s/)?{REPO}/resolve/([^/]+)/(.+)", self._resolve),
            ("HEAD", rf"/(?:(dataset)s/)?{REPO}/resolve/([^/]+)/(.+)", self._resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                return self._allowed(body, answer, pattern, [part and unquote(part) for part in match.groups()])
        return self._json(404, {"error": asked}, {"X-Error-Message": "no such page"})

    def _allowed(self, body: bytes, answer: Any, pattern: str, groups: list[str]) -> None:
        """Answers if the token permits the request."""
        given = self.headers.get("Authorization")
        known = given == f"Bearer {self.hub.token}"
        if given is not None and not known and not pattern.startswith("/lfs/"):
            return self._json(
                401,
                {"error": "Invalid credentials in Authorization header"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        if len(groups) >= 2:
            groups[0] = groups[0] or "model"
            key = key_of(groups[0], groups[1])
            if key not in self.hub.repositories or (key in self.hub.private and not known):
                return self._missing("RepoNotFound", f"no repository {key}", status=404 if known else 401)
            writes = any(part in pattern for part in ("preupload", "branch", "commit", "lfs"))
            if writes and groups[1].split("/")[0] not in self.hub.owners and "create_pr" not in self.query:
                return self._json(403, {"error": "Forbidden"}, {"X-Error-Message": "You may not write here"})
            if writes and not known:
                return self._json(401, {"error": "Unauthorized"})
        return answer(body, *groups)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or self.hub.user
        repo_id = f"{owner}/{asked['name']}"
        key = key_of(asked.get("type", "model"), repo_id)
        if self.headers.get("Authorization") is None:
            return self._json(401, {"error": "Unauthorized"})
        if owner not in self.hub.owners:
            return self._json(403, {"error": "Forbidden"}, {"X-Error-Message": f"You may not create in {owner}"})
        there = key in self.hub.repositories
        if not there:
            self.hub.repositories[key] = []
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(key)
        error = {"error": "You already created this repo"} if there else {}
        return self._json(409 if there else 200, {"url": f"{self.hub.url}/{key}", "name": repo_id, "id": "0", **error})

    def _validate(self, body: bytes) -> None:
        # The Hub reads the card's metadata: a block of YAML between two lines of dashes.
        card = json.loads(body)["content"]
        errors = [] if re.match(r"---\n.+?\n---\n", card, re.DOTALL) else [{"message": "no metadata"}]
        self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _branch(self, body: bytes, kind: str, repo_id: str, branch: str) -> None:
        key = key_of(kind, repo_id)
        if self.hub.find(key, branch) is not None:
            return self._json(409, {"error": f"there is a branch {branch}"})
        self.hub.branches[key, branch] = self.hub.find(key)["id"]  # type: ignore[index]
        return self._json(200, {})

    def _preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        if self.hub.find(key_of(kind, repo_id), revision) is None:
            return self._missing("RevisionNotFound", f"no revision {revision}")
        there = self.hub.files(key_of(kind, repo_id), revision)
        files = [
            {
                "path": name,
                "uploadMode": "lfs" if name.endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": oid_of(name, there[name]) if name in there else None,
            }
            for name in (file["path"] for file in json.loads(body)["files"])
        ]
        return self._json(200, {"files": files})

    def _lfs_batch(self, body: bytes, kind: str, repo_id: str) -> None:
        objects = [
            entry
            if entry["oid"] in self.hub.objects
            else {**entry, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}}
            for entry in json.loads(body)["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json(400, {"error": "the bytes have another SHA-256"})
        self.hub.objects[oid] = body
        return self._json(200, {})

    def _commit(self, body: bytes, kind: str, repo_id: str, branch: str) -> None:
        key = key_of(kind, repo_id)
        head = self.hub.find(key, branch)
        if head is None:
            return self._missing("RevisionNotFound", f"no branch {branch}")
        lines = [json.loads(line) for line in body.splitlines() if line]
        parent = next(line["value"].get("parentCommit") for line in lines if line["key"] == "header")
        if parent is not None and parent != head["id"]:
            return self._json(412, {"error": "A commit has happened since. Please refresh and try again."})
        pull_request = f"refs/pr/{len(self.hub.repositories[key])}" if "create_pr" in self.query else None
        commit = self.hub.commit(key, branch, lines, new_branch=pull_request)
        url = f"{self.hub.url}/{key}/commit/{commit}"
        answer = {"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{key}/discussions/{pull_request.rpartition('/')[2]}"
        return self._json(200, answer)

    def _info(self, body: bytes, kind: str, repo_id: str, revision: str | None) -> None:
        key = key_of(kind, repo_id)
        commit = self.hub.find(key, revision or "main")
        if commit is None:
            return self._missing("RevisionNotFound", f"no revision {revision}")
        files = [{"rfilename": name} for name in (".gitattributes", *commit["files"])]
        about = {"id": repo_id, "modelId": repo_id, "sha": commit["id"], "private": key in self.hub.private}
        return self._json(200, {**about, "siblings": files})

    def _tree(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        commit = self.hub.find(key_of(kind, repo_id), revision)
        if commit is None:
            return self._missing("RevisionNotFound", f"no revision {revision}")
        return self._json(200, [_entry(name, content) for name, content in commit["files"].items()])

    def _paths_info(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        commit = self.hub.find(key_of(kind, repo_id), revision)
        if commit is None:
            return self._missing("RevisionNotFound", f"no revision {revision}")
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        return self._json(200, [_entry(name, commit["files"][name]) for name in paths if name in commit["files"]])

    def _resolve(self, body: bytes, kind: str, repo_id: str, revision: str, name: str) -> None:
        commit = self.hub.find(key_of(kind, repo_id), revision)
        if commit is None:
            return self._missing("RevisionNotFound", f"no revision {revision}")
        if name not in commit["files"]:
            return self._missing("EntryNotFound", f"no file {name}", {"X-Repo-Commit": commit["id"]})
        content = commit["files"][name]
        headers = {
            "X-Repo-Commit": commit["id"],
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
        }
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        return self._answer(status, content, headers)

    def _missing(self, code: str, message: str, headers: dict[str, str] | None = None, *, status: int = 404) -> None:
        self._json(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _json(self, status: int, values: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(values).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if getattr(self, "lost", False):
            return self._reset()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        return None

    def _reset(self) -> None:
        """Breaks the connection, as a network failure does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid_of(name, content)}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": oid_of(name, content), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def running_hub(user: str = "someone", token: str = "hf_token") -> Iterator[Hub]:
    """A Hub at ``hub.url`` as long as the block runs."""
    hub = Hub(user, token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # connections are reset on purpose
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
