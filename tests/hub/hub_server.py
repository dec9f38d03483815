"""A Hub of one process: enough of its HTTP interface to create a repository, push one commit, and load from it.

Repositories live in memory. ``requests`` notes what was asked, ``bodies`` every byte that came, in order.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIX = ".safetensors"


class Hub:
    """What the server holds.

    Attributes:
        user: Owner of repositories that are created without one.
        token: The only token that may write.
        repositories: Id -> commits, oldest first; each has ``id``, ``message`` and ``files`` (path -> bytes).
        objects: SHA-256 -> bytes of large files that were put.
        requests: ``"POST /api/repos/create"``, ...
        bodies: The bodies of all requests.
    """

    def __init__(self, user: str, token: str) -> None:
        self.user, self.token = user, token
        self.repositories: dict[str, list[dict[str, Any]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.url = ""

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.repositories[repo_id][-1]["files"] if self.repositories[repo_id] else {}

    def commit(self, repo_id: str, lines: list[dict[str, Any]]) -> str:
        """Applies the lines of a commit request; returns the commit's id."""
        files = dict(self.files(repo_id))
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                raise ValueError(f"this Hub knows no {line['key']}")
        commit = hashlib.sha1(f"{repo_id} {len(self.repositories[repo_id])}".encode()).hexdigest()
        self.repositories[repo_id].append({"id": commit, "message": message, "files": files})
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.bodies.append(body)
        for method, pattern, answer in (
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/models/(.+)/preupload/main", self._preupload),
            ("POST", r"/(.+)\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/lfs/([0-9a-f]{64})", self._put),
            ("POST", r"/api/models/(.+)/commit/main", self._commit),
            ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self._info),
            ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                if method in ("POST", "PUT") and "validate" not in pattern and not self._may_write(path):
                    return self._json(401, {"error": "Invalid credentials"})
                return answer(body, *match.groups())
        return self._json(404, {"error": f"{self.command} {path}"}, {"X-Error-Message": "no such page"})

    def _may_write(self, path: str) -> bool:
        return path.startswith("/lfs/") or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

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
        repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        status = 409 if repo_id in self.hub.repositories else 200
        self.hub.repositories.setdefault(repo_id, [])
        self._json(status, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": "0"})

    def _validate(self, body: bytes) -> None:
        # The Hub reads the card's metadata: a block of YAML between two lines of dashes.
        card = json.loads(body)["content"]
        errors = [] if re.match(r"---\n.+?\n---\n", card, re.DOTALL) else [{"message": "no metadata"}]
        self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, body: bytes, repo_id: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIX) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json(200, {"files": files})

    def _lfs_batch(self, body: bytes, repo_id: str) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}}
            for entry in json.loads(body)["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json(400, {"error": "the bytes have another SHA-256"})
        self.hub.objects[oid] = body
        return self._json(200, {})

    def _commit(self, body: bytes, repo_id: str) -> None:
        commit = self.hub.commit(repo_id, [json.loads(line) for line in body.splitlines() if line])
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._json(200, {"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def _info(self, body: bytes, repo_id: str) -> None:
        if not self.hub.repositories.get(repo_id):
            return self._missing("RepoNotFound", f"no repository {repo_id}")
        files = [{"rfilename": name} for name in self.hub.files(repo_id)]
        commit = self.hub.repositories[repo_id][-1]["id"]
        return self._json(200, {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": files, "private": False})

    def _resolve(self, body: bytes, repo_id: str, revision: str, name: str) -> None:
        commits = self.hub.repositories.get(repo_id)
        if not commits:
            return self._missing("RepoNotFound", f"no repository {repo_id}")
        found = [commit for commit in commits if revision in ("main", commit["id"])]
        if not found:
            return self._missing("RevisionNotFound", f"no revision {revision}")
        commit = found[-1]
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
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        return self._answer(status, content, headers)

    def _missing(self, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(404, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _json(self, status: int, values: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(values).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub(user: str = "someone", token: str = "hf_token") -> Iterator[Hub]:
    """A Hub at ``hub.url`` as long as the block runs."""
    hub = Hub(user, token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
