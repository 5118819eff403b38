"""Compare the vendored uPlot with the published package, byte by byte.

    python tests/output/page/check_vendored.py

Needs npm and access to a registry. The exit code is 1 if a file differs.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[3] / "bnstat/output/page/vendor"

FILES = ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")
"""The vendored files, by their paths in the package."""


def main() -> int:
    """Compare, print, and return the exit code."""
    name, version = (VENDOR / "VERSION").read_text(encoding="utf-8").split()
    with tempfile.TemporaryDirectory() as folder:
        pack = ["npm", "pack", "--silent", f"{name}@{version}"]
        subprocess.run(pack, cwd=folder, check=True, timeout=60, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        shutil.unpack_archive(archive, folder, filter="data")
        pairs = {file: (VENDOR / Path(file).name, Path(folder, "package", file)) for file in FILES}
        wrong = [file for file, pair in pairs.items() if not filecmp.cmp(*pair, shallow=False)]
    print(f"{name} {version}:", f"{', '.join(wrong)} differ" if wrong else "as published")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
