"""Update the output of commands in the README and the topics.

    python -m tests.docs.refresh [README.md | TOPIC.md ...]

Read the changes (`git diff`) before you commit them.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.builders.bucket import bucket
from tests.docs.pages import BLOCKS, Runs


def main(names: list[str]) -> None:
    blocks = [block for block in BLOCKS if not names or block.page.name in names]
    with ExitStack() as stack:
        if any("s3://" in block.command for block in blocks):
            stack.enter_context(bucket())
        runs = Runs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        for block in blocks:
            lines = [line.rstrip() for line in runs.shown(block.command).rstrip().split("\n")]
            command = f"```console\n$ bnstat {block.command}\n"
            text = block.page.read_text(encoding="utf-8")
            new = "\n".join([*lines, ""])
            text = text.replace(f"{command}{block.output}```", f"{command}{new}```")
            block.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
