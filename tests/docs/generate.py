"""The pages and the schema that follow from the code.

The topic `cli` follows from the commands, the table in the topic `rules` from the rules, the
formats in the topic `files` and in the JSON schema from `formats/registry.py`, and the table in the
topic `export` from `exchange/registry.py`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

import bnstat
import bnstat.docs
from bnstat.checks import RULES, Rule
from bnstat.cli import COMMANDS, main
from bnstat.exchange.registry import FORMATS as EXPORT_FORMATS
from bnstat.formats.registry import FORMATS

FOLDER = Path(bnstat.docs.__file__).parent
SCHEMA = Path(bnstat.__file__).parent / "exchange/schema.json"

CLI_START = """\
# Command line

`bnstat COMMAND --help` prints one section of this page. An option has the same name and meaning in
every command that has it. Results go to standard output; notes, progress and errors go to standard
error. Colours and lines appear only on a terminal; `NO_COLOR` and `FORCE_COLOR` override that.
`COLUMNS` sets the width.

| command | |
| --- | --- |
"""

CLI_EXIT_CODES = """
## Exit codes

| code | meaning |
| --- | --- |
| 0 | Done. `check` had no finding at or above `--fail-on`; `diff` found no difference. |
| 1 | The file has no batch norm, or there is a finding, a difference, or too much drift. |
| 2 | The command failed: wrong usage, no such path, an unreadable or damaged file. |
"""

SHARED_BY = 3
"""An option of at least this many commands is described once."""


def escaped(text: str) -> str:
    """Return text with all markup of Markdown escaped, except `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<>\\|])", r"\\\1", part) for part in parts
    )


def filled(text: str, indent: str = "") -> str:
    whole_words = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, 100, subsequent_indent=indent, **whole_words)


def with_rows(topic: str, header: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the page of a topic as it is, with the rows below the header of a table replaced."""
    page = (FOLDER / f"{topic}.md").read_text(encoding="utf-8")
    before, found, after = page.partition(header)
    assert found, f"docs/{topic}.md lacks its generated table: restore the header {header!r}"
    yield before + header
    yield from (f"| {' | '.join(row)} |\n" for row in rows)
    yield re.sub(r"\A(\|.*\n)*", "", after)


def rules() -> Iterator[str]:
    header = "| code | name | severity | what it finds |\n| --- | --- | --- | --- |\n"
    return with_rows("rules", header, map(rule_row, RULES))


def rule_row(rule: Rule[Any]) -> tuple[str, ...]:
    link = f"[{rule.code}](#{rule.code.lower()}-{rule.name})"
    return link, rule.name, rule.severity, escaped(rule.title)


def options_of(command: click.Command) -> list[tuple[str, str]]:
    """Return the names and the descriptions of a command's options."""
    context = click.Context(command, **main.context_settings)
    options = (each for each in command.get_params(context) if isinstance(each, click.Option))
    return [record for each in options if (record := each.get_help_record(context))]


def option(names: str, description: str) -> str:
    return filled(f"- `{names}`: {escaped(description)}", "  ") + "\n"


def blocks(text: str) -> Iterator[str]:
    """Yield the paragraphs of a click help text; paragraphs with fixed lines become code blocks."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if not paragraph.startswith("\b\n"):
            yield f"\n{filled(escaped(' '.join(paragraph.split())))}\n"
            continue
        title, _, lines = paragraph.removeprefix("\b\n").partition("\n")
        yield f"\n{title}\n\n```text\n{textwrap.dedent(lines).rstrip()}\n```\n"


def cli() -> Iterator[str]:
    yield CLI_START
    for name, description in COMMANDS.items():
        yield f"| [{name}](#bnstat-{name}) | {escaped(description)} |\n"
    commands = {name: main.get_command(click.Context(main), name) for name in COMMANDS}
    options = {name: options_of(command) for name, command in commands.items() if command}
    counts = Counter(each for listed in options.values() for each in listed)
    shared = [each for each, count in counts.items() if count >= SHARED_BY]
    for name, command in commands.items():
        usage = " ".join(command.collect_usage_pieces(click.Context(command)))
        yield f"\n## bnstat {name}\n\n```text\nbnstat {name} {usage}\n```\n"
        yield from blocks(command.help or "")
        own = [each for each in options[name] if each not in shared]
        if own:
            yield "\n"
            yield from (option(*each) for each in own)
        others = [f"`{names}`" for names, _ in shared if (names, _) in options[name]]
        yield f"\n{filled('Shared options: ' + ', '.join(others) + '.')}\n"
        yield from blocks(command.epilog or "")
    yield "\n## Shared options\n\n"
    yield from (option(*each) for each in shared)
    yield CLI_EXIT_CODES


FILES_HEADER = "| you have | you type |\n| --- | --- |\n"
FILES_AFTER_FORMATS = (
    ("a training folder", "the folder; the newest checkpoint is used. `--checkpoint NAME` or "
     "`--step N` selects another"),
    ("a serving folder with numbered versions", "the folder; the newest version is used"),
    ("one of these in a `.zip`, `.tar` or `.tar.gz`", "the archive, which is read in place"),
)  # fmt: skip


def files() -> Iterator[str]:
    rows = [(row.description, row.path) for row in FORMATS]
    return with_rows("files", FILES_HEADER, (*rows, *FILES_AFTER_FORMATS))


EXPORT_HEADER = "| format | ending | content |\n| --- | --- | --- |\n"


def export() -> Iterator[str]:
    contents = [" ".join(row.content.split()) for row in EXPORT_FORMATS]
    rows = [
        (row.title, f"`.{row.name}`", content[0].upper() + content[1:])
        for row, content in zip(EXPORT_FORMATS, contents, strict=True)
    ]
    return with_rows("export", EXPORT_HEADER, rows)


def schema() -> Iterator[str]:
    """Yield the JSON schema as it is, with the names of the formats written again."""
    names = ",\n".join(f'            "{row.name}"' for row in FORMATS)
    text = SCHEMA.read_text(encoding="utf-8")
    enum = re.compile(r'(?<="format": \{\n          "enum": \[\n)[^]]*(?=\n          \])')
    assert enum.search(text), "exchange/schema.json has no enum of source.format: restore it"
    yield enum.sub(names, text)


PAGES = {FOLDER / f"{page.__name__}.md": page for page in (rules, cli, files, export)}
PAGES[SCHEMA] = schema
"""File -> its content."""
