"""`bnstat check`: check models, and explain how to fix the findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnstat.cli import options
from bnstat.cli.options import say
from bnstat.errors import BnstatError
from bnstat.storage.access import redact

if TYPE_CHECKING:
    from bnstat.output.findings import Checked

_EPILOG = """\b
Examples:
  bnstat check model.keras
  bnstat check exported/*.h5 --allow-none
  bnstat check runs/cnn --ignore BN009,BN010 --fail-on error
  bnstat check model.h5 --select near-zero-gamma --threshold gamma=0.01
  bnstat check saved_model --sarif -o bnstat.sarif
  bnstat check --explain BN001
"""


@click.command("check", epilog=_EPILOG)
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option("--rules", "list_rules", is_flag=True, help="List the rules, and exit.")
@click.option(
    "--explain",
    metavar="RULE",
    shell_complete=options.suggest_rules,
    help="Explain a rule by its code or name, and exit.",
)
@options.rules
@click.option(
    "--allow-none", is_flag=True, help="Exit with 0, not 1, if a model has no batch norm."
)
@options.formats(
    json="Write the findings as JSON.",
    github="Write GitHub Actions annotations.",
    sarif="Write SARIF 2.1.0, for code scanning.",
)
@options.layers
@options.reading
@options.output
@options.quiet
def command(
    paths: tuple[str, ...],
    list_rules: bool,
    explain: str | None,
    allow_none: bool,
    rules: options.ChosenRules,
    format_: str,
    reading: options.Reading,
    output: str,
) -> int:
    """Check the batch norm of the models at the PATHs, and explain how to fix the findings.

    A PATH is the folder, the prefix, any file or the URL (s3://, gs://, az://, hf://, https://) of
    a SavedModel, a checkpoint, an .h5, a .keras or another model. The default is the current
    folder. Each finding has a rule, whose code never changes its meaning, and a severity. The exit
    code is 1 if any model has an error or a warning; a finding of severity info does not change it.

    A project can keep its own choice of rules in [tool.bnstat] of its pyproject.toml, or in a
    bnstat.toml. The options below take precedence.
    """
    if list_rules or explain is not None:
        return _document(explain, output)

    from bnstat.checks.settings import resolve

    paths = paths or (".",)
    settings = resolve(paths, *rules)
    checked: list[Checked] = []
    unread = {}
    codes = []
    for path in paths:
        try:
            (model,) = reading.load(path)
            findings = settings[path].check(model)
        except BnstatError as error:
            if len(paths) == 1 and format_ != "github":
                raise
            say(f"error: {error}")
            unread[redact(path)] = str(error)
            codes.append(2)
            continue
        if reading.layers:
            names = {None, *model.keys()}
            findings = findings.where(lambda finding: finding.layer in names)  # noqa: B023
        checked.append((findings, model))
        has_incomplete = len(model.incomplete) > len(model.undecided)
        if model.layers or (findings and has_incomplete):
            codes.append(int(settings[path].fail(findings)))
        else:
            code = reading.exit_code(model)
            codes.append(0 if allow_none else code)
    _write(checked, unread, len(paths) > 1, format_, output)
    return max(codes)


def _document(explain: str | None, output: str) -> int:
    from bnstat.checks import RULES, find_rules
    from bnstat.output.findings import explained, overview
    from bnstat.output.sink import show

    rules, render = (RULES, overview) if explain is None else (find_rules([explain]), explained)
    show(lambda screen: render(rules, screen), output)
    return 0


def _write(
    checked: list[Checked], unread: dict[str, str], has_several: bool, format_: str, output: str
) -> None:
    from bnstat.output import findings as results
    from bnstat.output.sink import show, write_lines

    if format_ == "text":
        if shown := [(findings, model) for findings, model in checked if findings or model.layers]:
            show(lambda screen: results.report(shown, screen), output)
    elif format_ == "github":
        show(lambda _: results.github_lines(checked, unread), output)
    elif format_ == "sarif":
        write_lines(results.sarif_lines(checked), output)
    elif has_several:
        write_lines(results.json_of_several(checked, unread), output)
    else:
        write_lines(results.json_lines(*checked[0]), output)
