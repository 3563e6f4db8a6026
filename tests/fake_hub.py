"""A hub on this machine: models are made, files are committed and read, as huggingface_hub asks for it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """``models``: their files by name; ``private`` ones; ``refuse`` answers every request with 403."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.refuse = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        about = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | headers
        for name, text in about.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuse:
            self.answer({"error": "You have no right to do this"}, 403)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name not in self.server.models and (asked.get("private") or asked.get("visibility") == "private"):
                self.server.private.add(name)
            self.server.models.setdefault(name, {})
            self.answer({"url": f"{self.server.address}/{name}", "id": name})
        elif self.path == "/api/validate-yaml":  # of a model card's head
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main(\?.*)?", self.path):
            files = self.server.models[found[1]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.address}/{found[1]}/commit/{COMMIT}"
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self.answer({"error": f"unknown: {self.path}"}, 404)

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if self.server.refuse:
            self.answer({"error": "You have no right to see this"}, 403)
        elif found := re.fullmatch(r"/(.+)/resolve/[^/]+/(.+)", path):
            content = self.server.models.get(found[1], {}).get(found[2])
            if content is None:
                self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            else:
                self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
        elif found := re.fullmatch(r"/api/models/(.+?)/tree/[^/]+(/.+)?", path):
            files = self.server.models.get(found[1], {})
            if found[2]:  # no model here has folders
                self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            else:
                self.answer([{"type": "file", "path": p, "size": len(files[p]), "oid": COMMIT} for p in files])
        elif found := re.fullmatch(r"/api/models/(.+?)(/revision/[^/]+)?", path):
            files = self.server.models.get(found[1], {})
            names = [{"rfilename": name} for name in files]
            about = {"id": found[1], "modelId": found[1], "private": found[1] in self.server.private}
            self.answer(about | {"sha": COMMIT, "siblings": names, "tags": []})
        else:
            self.answer({"error": f"unknown: {self.path}"}, 404)

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
