"""Write again what follows from the code, in the documentation and beside it.

    python -m tests.docs [README.md | TOPIC.md ...]

First come the generated pages and the JSON schema (`generate`), then the record of the public
surface (`surface`), then the outputs of commands that the README and the topics show. Outputs of
commands that run a model or need a server are written only for pages that are named.

Each file that changes is printed. Read the changes (`git diff`) before you commit them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.builders.bucket import bucket
from tests.docs.generate import PAGES
from tests.docs.pages import BLOCKS, Runs
from tests.docs.surface import RECORD, surface
from tests.terminal import ROOT


def main(names: Sequence[str]) -> None:
    for path, page in PAGES.items():
        _write(path, "".join(page()))
    _write(RECORD, surface())
    _write_outputs(names)


def _write_outputs(names: Sequence[str]) -> None:
    blocks = [block for block in BLOCKS if block.page.name in names or not (names or block.is_slow)]
    with ExitStack() as stack:
        if any("s3://" in block.command for block in blocks):
            stack.enter_context(bucket())
        runs = Runs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        for block in blocks:
            lines = [line.rstrip() for line in runs.shown(block.command).rstrip().split("\n")]
            command = f"```console\n$ bnstat {block.command}\n"
            text = block.page.read_text(encoding="utf-8")
            new = "\n".join([*lines, ""])
            _write(block.page, text.replace(f"{command}{block.output}```", f"{command}{new}```"))


def _write(path: Path, text: str) -> None:
    if path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
