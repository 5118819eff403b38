"""Compare the vendored uPlot with the published package, byte by byte.

    python tests/output/page/check_vendored.py

Needs npm and access to a registry. The exit code is 1 if a file differs.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[3] / "bnstat/output/page/vendor"

FILES = {
    "uPlot.iife.min.js": "package/dist/uPlot.iife.min.js",
    "uPlot.min.css": "package/dist/uPlot.min.css",
    "LICENSE": "package/LICENSE",
}
"""Vendored file -> its place in the package."""


def published(version: str, folder: Path) -> dict[str, bytes]:
    """Return the files of a version such as `uplot@1.6.32`."""
    subprocess.run(
        ["npm", "pack", "--silent", version],
        cwd=folder,
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as package:
        members = {name: package.extractfile(place) for name, place in FILES.items()}
        return {name: member.read() for name, member in members.items() if member is not None}


def main() -> int:
    """Compare, print, and return the exit code."""
    name, version = (VENDOR / "VERSION").read_text(encoding="utf-8").split()
    with tempfile.TemporaryDirectory() as folder:
        expected = published(f"{name}@{version}", Path(folder))
    wrong = [file for file in FILES if (VENDOR / file).read_bytes() != expected.get(file)]
    print(f"{name} {version}:", f"{', '.join(wrong)} differ" if wrong else "as published")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
