"""As much of the Hugging Face hub as its file system asks for: one repository, one revision."""

from __future__ import annotations

import json
from hashlib import sha1
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.builders.server import Handler

REPOSITORY = "somebody/digits"
_API = f"/api/models/{REPOSITORY}"
_SHA = "0123456789abcdef0123456789abcdef01234567"


def answer(handler: Handler) -> bool:
    """Answer what is asked of the hub; a file is answered like any other."""
    url, root = urlsplit(handler.path), handler.server.folder
    path = unquote(url.path)
    if path in (_API, f"{_API}/revision/main"):
        return send(handler, {"id": REPOSITORY, "sha": _SHA, "siblings": []})
    folder = root / path.removeprefix(f"{_API}/tree/main").strip("/")
    if path.startswith(f"{_API}/tree/main") and folder.is_dir():
        whole = parse_qs(url.query).get("recursive", [""])[0] in ("true", "True")
        inside = folder.rglob("*") if whole else folder.iterdir()
        return send(handler, [entry(one, root) for one in inside])
    if path == f"{_API}/paths-info/main":
        length = int(handler.headers.get("Content-Length", "0"))
        places = [root / name for name in json.loads(handler.rfile.read(length)).get("paths", [])]
        return send(handler, [entry(one, root) for one in places if one.exists()])
    start = f"/{REPOSITORY}/resolve/main/"
    if path.startswith(start):
        handler.name = path.removeprefix(start)
        return handler.answer()
    return handler.status(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")


def entry(path: Path, root: Path) -> dict[str, object]:
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "a" * 40, "size": 0}
    digest = sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "oid": digest, "size": path.stat().st_size}


def send(handler: Handler, found: object) -> bool:
    body = json.dumps(found).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True
