"""Findings as workflow commands, which GitHub Actions shows as annotations.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from bnstat.checks.rule import Finding
from bnstat.model import Model, printable

_COMMANDS: Final = {"error": "error", "warning": "warning", "info": "notice"}


def lines(
    checked: Iterable[tuple[Iterable[Finding], Model]], unread: Mapping[str, str]
) -> Iterator[str]:
    """One command a finding of each model; one for each path that could not be read, and why."""
    for path, error in unread.items():
        yield f"::error file={_property(path)},title=unreadable::{_data(error)}"
    for findings, model in checked:
        path = _property(model.source.path)
        for finding in findings:
            command = _COMMANDS[finding.severity]
            title = _property(f"{finding.rule} {finding.name}")
            where = "" if finding.layer is None else f"{finding.layer}: "
            yield f"::{command} file={path},title={title}::{_data(where + finding.message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
