"""A project's settings for checks: `bnstat.toml`, or `[tool.bnstat]` in a `pyproject.toml`.

The page docs/check.md documents the settings. Only the nearest file is used, searched from the
model's folder upwards; in one folder, `bnstat.toml` is preferred.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any, Final

from bnstat.checks import Findings, check, find_rules
from bnstat.checks.rule import SEVERITIES, Finding, Severity, Thresholds
from bnstat.errors import BnstatError
from bnstat.model import Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OWN: Final = "bnstat.toml"
_SHARED: Final = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """The rules that a check applies, the thresholds, and the severity that fails a check.

    `select` and `ignore` contain names of rules or prefixes of codes; without `select`, all rules
    apply.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fail_on: Severity | None = None

    def over(self, other: Settings) -> Settings:
        """Merge two settings; the values in `self` take precedence over `other`.

        The lists of ignored rules are joined, except if `self` selects rules: then `other.ignore`
        is dropped, because an explicitly selected rule is applied.
        """
        return Settings(
            select=self.select or other.select,
            ignore=self.ignore if self.select else (*other.ignore, *self.ignore),
            thresholds={**other.thresholds, **self.thresholds},
            fail_on=self.fail_on or other.fail_on,
        )

    def check(self, model: Model) -> Findings:
        thresholds = Thresholds.of(self.thresholds)
        return check(model, select=self.select, ignore=self.ignore, thresholds=thresholds)

    def fail(self, findings: Iterable[Finding]) -> bool:
        """Return True if a check with these findings fails; the default is to fail on warnings."""
        failing = SEVERITIES[: SEVERITIES.index(self.fail_on or "warning") + 1]
        return any(finding.severity in failing for finding in findings)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings for all models; `per_path` maps globs, relative to `folder`, to settings."""

    folder: PurePath
    settings: Settings
    per_path: Mapping[str, Settings]

    def settings_for(self, path: str) -> Settings:
        """Return the settings for a path. A glob also matches folders; `*` also matches `/`."""
        settings = self.settings
        for glob, more in self.per_path.items():
            relative = PurePath(os.path.relpath(path, self.folder))
            candidates = [ancestor.as_posix() for ancestor in (relative, *relative.parents)]
            if "/" not in glob:
                candidates += relative.parts
            if any(fnmatchcase(candidate, glob.rstrip("/")) for candidate in candidates):
                settings = more.over(settings)
        return settings


def resolve(
    paths: Iterable[str], given: Settings, config_file: str | None = None, isolated: bool = False
) -> dict[str, Settings]:
    """Return path -> settings for each model.

    The settings in `given` take precedence over `config_file` or, by default, over the nearest
    configuration file of each model. With `isolated`, no configuration file is used.
    """
    find_rules([*given.select, *given.ignore])
    Thresholds.of(given.thresholds)
    if isolated:
        return dict.fromkeys(paths, given)
    common = None if config_file is None else read(config_file)
    settings = {}
    for path in paths:
        config = common or nearest(path)
        settings[path] = given if config is None else given.over(config.settings_for(path))
    return settings


def nearest(path: str) -> Config | None:
    """Return the nearest configuration, searched from the folder `path` upwards, or None."""
    start = Path(os.path.abspath(path))
    for folder in (start, *start.parents):
        for name in (_OWN, _SHARED):
            file = folder / name
            if os.path.isfile(file) and (config := _read(file)) is not None:
                return config
    return None


def read(file: str) -> Config:
    """Return the configuration in a file."""
    config = _read(Path(file))
    if config is None:
        raise BnstatError(file, "has no table [tool.bnstat]")
    return config


def _read(file: Path) -> Config | None:
    """Return the configuration in a file; None for a `pyproject.toml` without `[tool.bnstat]`."""
    is_shared = file.name == _SHARED
    try:
        data = file.read_bytes()
        if is_shared and b"bnstat" not in data:
            return None
        values: Any = tomllib.loads(data.decode())
    except OSError as error:
        raise BnstatError(str(file), f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BnstatError(str(file), f"is not valid TOML: {error}") from None
    if is_shared:
        tools = values.get("tool")
        if not isinstance(tools, dict) or "bnstat" not in tools:
            return None
        values = tools["bnstat"]
    table = _Table(str(file), "tool.bnstat" if is_shared else "", values)
    table.check_keys(("select", "ignore", "fail-on", "thresholds", "per-path"))
    per_path = table.table("per-path")
    rules = table.rules("select"), table.rules("ignore")
    settings = Settings(*rules, table.thresholds(), table.severity())
    folder = PurePath(os.path.dirname(os.path.abspath(file)))
    return Config(folder, settings, {glob: per_path.settings(glob) for glob in per_path.values})


class _Table:
    """A table of a configuration file; error messages contain the file and the table's key."""

    def __init__(self, file: str, key: str, values: Any, expected: str = "a table") -> None:
        self.file = file
        self.key = key
        if not isinstance(values, dict):
            raise BnstatError(file, f"{key}: is not {expected}")
        self.values = values

    def error(self, key: str, what: str, hint: str = "") -> BnstatError:
        return BnstatError(self.file, f"{self.key_of(key)}: {what}", hint)

    def key_of(self, key: str) -> str:
        name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
        return f"{self.key}.{name}" if self.key else name

    def check_keys(self, keys: Sequence[str]) -> None:
        for key in self.values:
            if key not in keys:
                raise self.error(key, "there is no such setting", f"use {', '.join(keys)}")

    def table(self, key: str, expected: str = "a table") -> _Table:
        return _Table(self.file, self.key_of(key), self.values.get(key, {}), expected)

    def settings(self, glob: str) -> Settings:
        """Return the settings for a glob: a list of rules to ignore, or a table."""
        if isinstance(self.values[glob], list):
            return Settings(ignore=self.rules(glob))
        table = self.table(glob, "a list of rules or a table")
        table.check_keys(("ignore", "thresholds"))
        return Settings(ignore=table.rules("ignore"), thresholds=table.thresholds())

    def rules(self, key: str) -> tuple[str, ...]:
        rules = self.values.get(key, [])
        if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
            raise self.error(key, 'is not a list of rules, such as ["BN001"]')
        try:
            find_rules(rules)
        except BnstatError as error:
            raise self.error(key, f"{error.where}: {error.what}", error.hint) from None
        return tuple(rules)

    def thresholds(self) -> dict[str, float]:
        table = self.table("thresholds")
        for name, value in table.values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise table.error(name, "is not a number")
            try:
                Thresholds.of({name: float(value)})
            except OverflowError:
                raise table.error(name, "is too large a number") from None
            except BnstatError as error:
                raise table.error(name, error.what, error.hint) from None
        return {name: float(value) for name, value in table.values.items()}

    def severity(self) -> Severity | None:
        severity: Severity | None = self.values.get("fail-on")
        if severity is not None and severity not in SEVERITIES:
            raise self.error("fail-on", f"is not one of {', '.join(SEVERITIES)}")
        return severity
