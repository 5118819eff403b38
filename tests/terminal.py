"""What bnstat shows in a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def in_terminal(
    arguments: Sequence[str], columns: int = 80, colours: bool = False, folder: Path = ROOT
) -> str:
    """What a command shows in a terminal of so many columns; colours as escape sequences."""
    screen, terminal = pty.openpty()
    # What the tests set for TensorFlow is not in a person's shell.
    of_shell = {name: text for name, text in os.environ.items() if not name.startswith("TF_")}
    environment = of_shell | {
        "COLUMNS": str(columns),
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "NO_COLOR": "" if colours else "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "bnstat", *arguments],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(screen, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    process.wait()
    os.close(screen)
    text = shown.decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;?]*[a-ln-zA-Z]" if colours else r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
