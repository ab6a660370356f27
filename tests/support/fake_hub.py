"""The few requests of the Hugging Face hub that pushing and loading a model need, on a port of this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """Answers from `repositories`; those that are private only with the token."""

    address: str
    repositories: dict[str, dict[str, Any]]  # name -> {"private": bool, "files": {path: bytes}}

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        name, rest = ("/".join(parts[2:4]), parts[4:]) if parts[0] == "api" else ("/".join(parts[:2]), parts[2:])
        found = self.repositories.get(name)
        if found is None or (found["private"] and self.headers["Authorization"] != f"Bearer {TOKEN}"):
            self.answer(404, b"Repository not found", {"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self.answer(404, b"Invalid rev id", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["resolve"]:
            content = found["files"]["/".join(rest[2:])]
            self.answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        elif rest[:1] == ["tree"]:
            self.say([{"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                      for path, content in found["files"].items()])
        else:
            self.say({"id": name, "sha": COMMIT, "private": found["private"], "siblings": [
                {"rfilename": path} for path in found["files"]]})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}" and "yaml" not in self.path:
            return self.answer(401, b"Invalid credentials")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            new = {"private": asked.get("visibility") == "private" or asked.get("private") is True, "files": {}}
            self.repositories.setdefault(name, new)
            return self.say({"url": f"{self.address}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            return self.say({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                                       for one in json.loads(body)["files"]]})
        if "/commit/" in self.path:
            for one in map(json.loads, body.splitlines()):
                if one["key"] == "file":
                    self.repositories[name]["files"][one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            return self.say({"commitOid": COMMIT, "commitUrl": f"{self.address}/{name}/commit/{COMMIT}"})
        return self.say({"errors": [], "warnings": []})  # validate-yaml

    def say(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Serve a hub to this process, with an empty cache and no token; yields its repositories."""
    handler = type("OneHub", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield handler.repositories
    finally:
        server.shutdown()
        server.server_close()
