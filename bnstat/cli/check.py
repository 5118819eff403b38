"""`bnstat check`: what is wrong with a model's batch norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnstat.cli import options

if TYPE_CHECKING:
    from bnstat.checks import Finding
    from bnstat.model import Model

_FORMS = ("json", "github", "sarif")
_SEVERITIES = ("error", "warning", "info")


def _thresholds(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    settings = {}
    for text in given:
        name, _equals, value = text.partition("=")
        try:
            settings[name] = float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER") from None
    return settings


_EPILOG = """\b
Examples:
  bnstat check model.keras
  bnstat check runs/cnn --ignore BN009,BN010 --fail-on error
  bnstat check model.h5 --select near-zero-gamma --threshold gamma=0.01
  bnstat check saved_model --sarif -o bnstat.sarif
  bnstat check --explain BN001
"""


@click.command("check", epilog=_EPILOG)
@options.path
@click.option("--rules", "list_rules", is_flag=True, help="List the rules, and exit.")
@click.option("--explain", metavar="RULE", help="Explain a rule by its code or name, and exit.")
@click.option(
    "--select",
    multiple=True,
    metavar="RULE",
    help="Only these rules: a name, or the beginning of a code, such as BN001. Can be repeated, "
    "or be a list with commas.",
)
@click.option(
    "--ignore", multiple=True, metavar="RULE", help="All but these rules; given as for --select."
)
@click.option(
    "--threshold",
    "settings",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_thresholds,
    help="Where a rule draws its line, such as gamma=0.01; --explain tells the name and the "
    "default. Can be repeated.",
)
@click.option(
    "--fail-on",
    type=click.Choice(_SEVERITIES),
    default="warning",
    help="Exit with 1 where something of this severity, or a graver one, is found. "
    "Default: warning.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the findings as JSON.")
@click.option("--github", "as_github", is_flag=True, help="Write GitHub Actions annotations.")
@click.option("--sarif", "as_sarif", is_flag=True, help="Write SARIF 2.1.0, for code scanning.")
@options.layers
@options.reading
@options.output
@options.quiet
def command(
    path: str,
    list_rules: bool,
    explain: str | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    settings: dict[str, float],
    fail_on: str,
    as_json: bool,
    as_github: bool,
    as_sarif: bool,
    layers: tuple[str, ...],
    reading: options.Reading,
    output: str,
    quiet: bool,
) -> int:
    """Look for what is wrong with the batch norm of the model at PATH.

    PATH is a SavedModel, a checkpoint, an .h5 or a .keras: its folder, its prefix or any of its
    files. Each finding has a rule, whose code does not change, and a severity. Errors and
    warnings make the exit code 1; what is only worth knowing does not.
    """
    if list_rules or explain is not None:
        return _document(explain, output)
    flags = (as_json, as_github, as_sarif)
    asked = [form for form, flag in zip(_FORMS, flags, strict=True) if flag]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(f'--{form}' for form in asked)}: choose one")

    from bnstat.checks import Thresholds, check, find_rules

    selected, ignored = _split(select), _split(ignore)
    find_rules([*selected, *ignored])
    thresholds = Thresholds.of(settings)
    model = reading.load(path, layers, quiet=quiet)
    options.tell(model, quiet)
    findings = check(model, select=selected, ignore=ignored, thresholds=thresholds)
    if layers:
        names = set(model.keys())
        findings = [each for each in findings if each.layer is None or each.layer in names]
    nothing = not model.layers and not findings
    if asked or not nothing:
        _write(findings, model, asked[0] if asked else "text", output)
    if nothing:
        return options.answer(model, quiet)
    failing = _SEVERITIES[: _SEVERITIES.index(fail_on) + 1]
    return 1 if any(finding.severity in failing for finding in findings) else 0


def _split(given: tuple[str, ...]) -> list[str]:
    return [rule.strip() for text in given for rule in text.split(",") if rule.strip()]


def _document(explain: str | None, output: str) -> int:
    from bnstat.checks import RULES, find_rules
    from bnstat.output.sink import show
    from bnstat.output.terminal import rules as findings_rules

    if explain is None:
        show(lambda screen: findings_rules.overview(RULES, screen), output)
    else:
        rules = find_rules([explain])
        show(lambda screen: findings_rules.explain(rules, screen), output)
    return 0


def _write(findings: list[Finding], model: Model, form: str, output: str) -> None:
    from bnstat.output.sink import open_text, show

    if form == "text":
        from bnstat.output.terminal import findings as text

        show(lambda screen: text.report(findings, model, screen), output)
    elif form == "github":
        from bnstat.output.documents.findings import github as findings_github

        show(lambda _: findings_github.lines(findings, model), output)
    elif form == "sarif":
        from bnstat import __version__
        from bnstat.output.documents.findings import sarif as findings_sarif

        with open_text(output) as file:
            findings_sarif.dump(findings, model, __version__, file)
    else:
        from bnstat.output.documents.findings import json as findings_json

        with open_text(output) as file:
            findings_json.dump(findings, model, file)
