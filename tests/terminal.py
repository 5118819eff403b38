"""The output of bnstat in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_PROGRESS = """
from bnstat.output.terminal import screen as progress
progress._DELAY = 3600
from bnstat.__main__ import run
run()
"""


def in_terminal(
    arguments: Sequence[str], columns: int = 80, colours: bool = False, folder: Path = ROOT
) -> str:
    """Return what a command shows in a terminal of this width, with colours as escape sequences.

    Progress bars are left out, because they appear on slow machines only.
    """
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    # A user's shell does not have the variables that the tests set for TensorFlow.
    of_user = {name: text for name, text in os.environ.items() if not name.startswith("TF_")}
    environment = of_user | {
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "NO_COLOR": "" if colours else "1",
    }
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    command = [sys.executable, "-c", WITHOUT_PROGRESS, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, **streams)
    os.close(terminal)
    shown = b""
    with suppress(OSError):
        while chunk := os.read(screen, 1 << 16):
            shown += chunk
    process.wait()
    os.close(screen)
    text = shown.decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;?]*[a-ln-zA-Z]" if colours else r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
