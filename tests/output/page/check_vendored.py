"""Compare the vendored uPlot with the published package, byte by byte.

    python tests/output/page/check_vendored.py

Needs npm and access to a registry. The exit code is 1 if a file differs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[3] / "bnstat/output/page/vendor"

FILES = {
    "uPlot.iife.min.js": "package/dist/uPlot.iife.min.js",
    "uPlot.min.css": "package/dist/uPlot.min.css",
    "LICENSE": "package/LICENSE",
}
"""Vendored file -> its place in the package."""


def main() -> int:
    """Compare, print, and return the exit code."""
    name, version = (VENDOR / "VERSION").read_text(encoding="utf-8").split()
    with tempfile.TemporaryDirectory() as folder:
        pack = ["npm", "pack", "--silent", f"{name}@{version}"]
        subprocess.run(pack, cwd=folder, check=True, timeout=60, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        shutil.unpack_archive(archive, folder, filter="data")
        wrong = [
            file
            for file, place in FILES.items()
            if (VENDOR / file).read_bytes() != (Path(folder) / place).read_bytes()
        ]
    print(f"{name} {version}:", f"{', '.join(wrong)} differ" if wrong else "as published")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
