"""`bnstat check`: what is wrong with a model's batch norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnstat.cli import options, rule_options, suggestions
from bnstat.cli.options import say
from bnstat.errors import BnstatError
from bnstat.storage.access import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bnstat.checks import Findings
    from bnstat.checks.settings import Settings
    from bnstat.model import Model
    from bnstat.output.terminal.screen import Screen

    Checked = tuple[Findings, Model]


_FORMS = ("json", "github", "sarif")


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
    shell_complete=suggestions.rules,
    help="Explain a rule by its code or name, and exit.",
)
@rule_options.judging
@click.option(
    "--allow-none", is_flag=True, help="Exit with 0, not 1, if a model has no batch norm."
)
@click.option("--json", "as_json", is_flag=True, help="Write the findings as JSON.")
@click.option("--github", "as_github", is_flag=True, help="Write GitHub Actions annotations.")
@click.option("--sarif", "as_sarif", is_flag=True, help="Write SARIF 2.1.0, for code scanning.")
@options.layers
@options.reading
@options.output
@options.quiet
def command(
    paths: tuple[str, ...],
    list_rules: bool,
    explain: str | None,
    allow_none: bool,
    as_json: bool,
    as_github: bool,
    as_sarif: bool,
    layers: tuple[str, ...],
    judging: rule_options.Judging,
    reading: options.Reading,
    output: str,
    quiet: bool,
) -> int:
    """Check the batch norm of the models at the PATHs, and explain how to fix the findings.

    A PATH is a SavedModel, a checkpoint, an .h5, a .keras or another model: its folder, its
    prefix, any of its files, or a URL of these (s3://, gs://, az://, hf://, https://). The default
    is the current folder. Each finding has a rule, whose code never changes its meaning, and a
    severity. The exit code is 1 if any model has an error or a warning; a finding of severity
    info does not change it.

    A project can keep its own choice of rules in [tool.bnstat] of its pyproject.toml, or in a
    bnstat.toml. The options below take precedence.
    """
    if list_rules or explain is not None:
        return _document(explain, output)
    flags = (as_json, as_github, as_sarif)
    asked = [form for form, flag in zip(_FORMS, flags, strict=True) if flag]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(f'--{form}' for form in asked)}: choose one")

    from bnstat.checks.settings import resolve

    paths = paths or (".",)
    settings = resolve(paths, judging.settings, judging.config_file, judging.isolated)
    checked: list[Checked] = []
    unread = {}
    codes = []
    for path in paths:
        try:
            findings, model = _check(path, settings[path], layers, reading, quiet)
        except BnstatError as error:
            if len(paths) == 1 and not as_github:
                raise
            say(f"error: {error}")
            unread[redact(path)] = str(error)
            codes.append(2)
            continue
        checked.append((findings, model))
        is_norm = len(model.incomplete) > len(model.undecided)
        if model.layers or (findings and is_norm):
            codes.append(int(settings[path].fail(findings)))
        else:
            none = options.answer(model, quiet)
            codes.append(0 if allow_none else none)
    form = asked[0] if asked else "text"
    _write(checked, unread, len(paths) > 1, form, output)
    return max(codes)


def _check(
    path: str,
    settings: Settings,
    layers: tuple[str, ...],
    reading: options.Reading,
    quiet: bool,
) -> Checked:
    model = reading.load(path, layers, quiet=quiet)
    options.tell([model], quiet)
    findings = settings.check(model)
    if layers:
        names = set(model.keys())
        findings = findings.where(lambda each: each.layer is None or each.layer in names)
    return findings, model


def _document(explain: str | None, output: str) -> int:
    from bnstat.checks import RULES, find_rules
    from bnstat.output.sink import show
    from bnstat.output.terminal import findings as findings_rules

    if explain is None:
        show(lambda screen: findings_rules.overview(RULES, screen), output)
    else:
        rules = find_rules([explain])
        show(lambda screen: findings_rules.explain(rules, screen), output)
    return 0


def _write(
    checked: list[Checked], unread: dict[str, str], several: bool, form: str, output: str
) -> None:
    from bnstat.output.sink import open_text, show

    if form == "text":
        from bnstat.output.terminal import findings as text

        def lines(screen: Screen) -> Iterator[str]:
            reports = [(found, model) for found, model in checked if found or model.layers]
            for number, (found, model) in enumerate(reports):
                if number:
                    yield ""
                yield from text.report(found, model, screen)

        if any(found or model.layers for found, model in checked):
            show(lines, output)
    elif form == "github":
        from bnstat.output.results import findings as findings_github

        show(lambda _: findings_github.lines(checked, unread), output)
    elif form == "sarif":
        from bnstat import __version__
        from bnstat.output.results import findings as findings_sarif

        with open_text(output) as file:
            findings_sarif.dump_sarif(checked, __version__, file)
    else:
        from bnstat.output.results import findings as findings_json

        with open_text(output) as file:
            if several:
                findings_json.dump_all(checked, unread, file)
            else:
                findings_json.dump_json(*checked[0], file)
