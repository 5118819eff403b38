"""Records the public surface: Python names, command-line options, exit codes and JSON schemas.

`surface.txt` has one line for each thing that semantic versioning protects. A line that disappears
or changes breaks somebody's program and needs a new major version.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import bnstat
import bnstat.keras
from bnstat.checks import RULES
from bnstat.cli import COMMANDS, main

RECORD = Path(__file__).with_name("surface.txt")
PACKAGE = Path(bnstat.__file__).parent
SCHEMAS = {
    "export": PACKAGE / "exchange" / "schema.json",
    "scan": PACKAGE / "output" / "scan_schema.json",
}
PUBLIC_BASES = ("BnstatError", "Callback", "Sequence")
"""Base classes that a program can rely on, as in `except BnstatError`."""


def surface() -> str:
    """Return the record of the surface as the code defines it now."""
    lines = [*names(), *options(), *rules(), *schemas()]
    return "".join(f"{line}\n" for line in lines)


def names() -> Iterator[str]:
    """Yield each public name, with its parameters and, for a class, its public members."""
    for name in sorted(bnstat.__all__):
        yield from described(f"bnstat.{name}", getattr(bnstat, name))
    yield from described("bnstat.keras.Watch", bnstat.keras.Watch)


def described(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__mro__[1:] if base.__name__ in PUBLIC_BASES]
        yield " ".join([f"python class {path}", *bases])
        for name in sorted(dir(value)):
            if not name.startswith("_") and name not in dir(inherited(value)):
                yield from member(f"{path}.{name}", inspect.getattr_static(value, name))
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if not field.name.startswith("_") and not hasattr(value, field.name):
                    yield f"python attribute {path}.{field.name}"
    elif callable(value):
        yield f"python function {path}{parameters(value)}"
    else:
        yield f"python value {path}"


def inherited(value: type) -> type:
    """Return a class of a library whose members are the library's business, not ours."""
    foreign = [base for base in value.__mro__ if not base.__module__.startswith("bnstat")]
    return foreign[0] if foreign else object


def member(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if inspect.isfunction(value):
        yield f"python method {path}{parameters(value)}"
    else:
        yield f"python attribute {path}"


def parameters(function: Any) -> str:
    """Return the parameters that a caller can pass, without annotations."""
    kept = []
    for parameter in inspect.signature(function).parameters.values():
        is_optional = parameter.default is not parameter.empty
        default = ... if is_optional else parameter.empty
        if parameter.name != "self":
            kept.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(inspect.Signature(kept)).replace("=Ellipsis", "=")


def options() -> Iterator[str]:
    """Yield each command's arguments and options, with the values that an option accepts."""
    context = click.Context(main)
    yield from of_command("bnstat", main)
    for name in sorted(COMMANDS):
        command = main.get_command(context, name)
        yield from of_command(f"bnstat {name}", command)


def of_command(path: str, command: click.Command) -> Iterator[str]:
    yield f"command {path}"
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        spelling = " ".join(sorted([*parameter.opts, *parameter.secondary_opts]))
        kind = "option" if isinstance(parameter, click.Option) else "argument"
        is_flag = getattr(parameter, "is_flag", False)
        values = "" if is_flag or kind == "argument" else " VALUE"
        if isinstance(parameter.type, click.Choice):
            values = " " + "|".join(map(str, parameter.type.choices))
        more = " ..." if parameter.nargs == -1 or getattr(parameter, "multiple", False) else ""
        yield f"{kind} {path} {spelling}{values}{more}"


def rules() -> Iterator[str]:
    """Yield the code and the name of each rule: configuration files contain them."""
    for rule in sorted(RULES, key=lambda rule: rule.code):
        yield f"rule {rule.code} {rule.name}"


def schemas() -> Iterator[str]:
    """Yield each property of the JSON schemas, with its type."""
    for name, path in SCHEMAS.items():
        yield from properties(f"json {name}", json.loads(path.read_text(encoding="utf-8")))


def properties(path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    kept = {
        key: value
        for key, value in schema.items()
        if key not in ("$defs", "properties", "items", "title", "description", "$schema", "$id")
    }
    yield f"{path} {json.dumps(kept, sort_keys=True)}"
    for group in ("properties", "$defs"):
        for key, value in schema.get(group, {}).items():
            yield from properties(f"{path}.{key}", value)
    if isinstance(schema.get("items"), Mapping):
        yield from properties(f"{path}[]", schema["items"])
