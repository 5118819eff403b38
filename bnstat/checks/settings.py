"""What a project says of its checks: `bnstat.toml`, or `[tool.bnstat]` in a `pyproject.toml`.

    select = ["BN0"]                    # only these rules; all, where empty or left out
    ignore = ["near-zero-gamma"]        # but not these
    fail-on = "error"                   # from which severity on a check fails

    [thresholds]                        # by the names that `bnstat check --explain` tells
    gamma = 0.01

    [per-path]                          # more to ignore, or other thresholds, for some models
    "legacy/*" = ["BN001"]
    "*.weights.h5" = { ignore = ["BN006"], thresholds = { collapsed = 1e-6 } }

The file is looked for in the model's folder and then upwards; the nearest is taken, and it alone.
In one folder `bnstat.toml` wins. A `pyproject.toml` that has no `[tool.bnstat]` is passed over.
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

_OWN: Final = "bnstat.toml"
_SHARED: Final = "pyproject.toml"
_PER_PATH_KEYS: Final = ("ignore", "thresholds")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+$")
_KEYS: Final = ("select", "ignore", "fail-on", "thresholds", "per-path")


@dataclass(frozen=True, slots=True)
class Settings:
    """Which rules a check applies, and how.

    Attributes:
        select: names of rules or beginnings of codes; only these are applied, all where empty.
        ignore: likewise; these are not applied.
        thresholds: where rules draw their lines, by the names of `Thresholds`.
        fail_on: from which severity on a check fails; None where it is not said.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fail_on: Severity | None = None

    def over(self, other: Settings) -> Settings:
        """These settings, and the other's where these say nothing.

        What is ignored adds up, but a selection starts anew: whoever asks for a rule gets it.
        """
        return Settings(
            select=self.select or other.select,
            ignore=self.ignore if self.select else (*other.ignore, *self.ignore),
            thresholds={**other.thresholds, **self.thresholds},
            fail_on=self.fail_on or other.fail_on,
        )

    def check(self, model: Model) -> Findings:
        """What the rules find in a model. Raises as `bnstat.check` does."""
        return check(
            model,
            select=self.select,
            ignore=self.ignore,
            thresholds=Thresholds.of(self.thresholds),
        )

    def fail(self, findings: Iterable[Finding]) -> bool:
        """Whether a check with these findings fails: from warnings on, where it is not said."""
        failing = SEVERITIES[: SEVERITIES.index(self.fail_on or "warning") + 1]
        return any(finding.severity in failing for finding in findings)


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration file.

    Attributes:
        folder: where it lies; the globs are relative to it.
        settings: for all models.
        per_path: glob -> settings for the models that it matches.
    """

    folder: PurePath
    settings: Settings
    per_path: Mapping[str, Settings]

    def settings_for(self, path: str) -> Settings:
        """The settings for the model at `path`."""
        settings = self.settings
        for glob, more in self.per_path.items():
            if self._matches(glob, path):
                settings = more.over(settings)
        return settings

    def _matches(self, glob: str, path: str) -> bool:
        """Whether a glob matches the path, or a folder on its way; `*` crosses `/`."""
        relative = PurePath(os.path.relpath(path, self.folder))
        ways = [each.as_posix() for each in (relative, *relative.parents)]
        if "/" not in glob:
            ways += relative.parts
        return any(fnmatchcase(way, glob.rstrip("/")) for way in ways)


def resolve(
    paths: Iterable[str], given: Settings, config_file: str | None = None, isolated: bool = False
) -> dict[str, Settings]:
    """The settings for each of some models.

    Args:
        paths: where the models are.
        given: what the user says; it wins.
        config_file: the file with the project's settings; the nearest to each model if None.
        isolated: take no settings from any file.

    Raises:
        BnstatError: as `find` and `read`; or what is given names no rule or no threshold.
    """
    find_rules([*given.select, *given.ignore])
    Thresholds.of(given.thresholds)
    if isolated:
        return dict.fromkeys(paths, given)
    project = find if config_file is None else read(config_file).settings_for
    return {path: given.over(project(path)) for path in paths}


def find(path: str) -> Settings:
    """The settings that the nearest configuration file has for the model at `path`.

    Raises:
        BnstatError: the file cannot be read, or says what it cannot mean.
    """
    config = nearest(path)
    return Settings() if config is None else config.settings_for(path)


def nearest(path: str) -> Config | None:
    """The configuration file in a folder, or the nearest above it.

    Raises:
        BnstatError: the file cannot be read, or says what it cannot mean.
    """
    start = Path(os.path.abspath(path))
    for folder in (start, *start.parents):
        for name in (_OWN, _SHARED):
            file = folder / name
            if os.path.isfile(file) and (config := _read(file)) is not None:
                return config
    return None


def read(file: str) -> Config:
    """Read a configuration file: a `pyproject.toml`, or one of another name in bnstat's own form.

    Raises:
        BnstatError: it cannot be read, has no `[tool.bnstat]`, or says what it cannot mean.
    """
    config = _read(Path(file))
    if config is None:
        raise BnstatError(file, "has no [tool.bnstat]")
    return config


def _read(file: Path) -> Config | None:
    """The configuration in a file; None in a `pyproject.toml` without `[tool.bnstat]`."""
    shared = file.name == _SHARED
    try:
        data = file.read_bytes()
        if shared and b"bnstat" not in data:
            return None
        table: Any = _parse(data)
    except OSError as error:
        raise BnstatError(str(file), f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BnstatError(str(file), f"is no TOML: {error}") from None
    if shared:
        tools = table.get("tool")
        if not isinstance(tools, dict) or "bnstat" not in tools:
            return None
        table = tools["bnstat"]
    return _Source(str(file), "tool.bnstat" if shared else "").config(table)


def _parse(data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(data.decode())


@dataclass(frozen=True, slots=True)
class _Source:
    """Reads tables of a file; what is wrong is told with the file and the key.

    Attributes:
        file: the file.
        key: the table's key in it; empty for the whole file.
    """

    file: str
    key: str

    def config(self, table: Any) -> Config:
        self._check_keys(table, _KEYS)
        per_path = self._below("per-path")
        globs = table.get("per-path", {})
        per_path._check_keys(globs, globs)
        return Config(
            PurePath(os.path.dirname(os.path.abspath(self.file))),
            Settings(
                self._rules(table, "select"),
                self._rules(table, "ignore"),
                self._thresholds(table),
                self._severity(table),
            ),
            {glob: per_path._for_path(globs, glob) for glob in globs},
        )

    def _for_path(self, globs: Mapping[str, Any], glob: str) -> Settings:
        if isinstance(globs[glob], list):
            return Settings(ignore=self._rules(globs, glob))
        below = self._below(glob)
        below._check_keys(globs[glob], _PER_PATH_KEYS, "a list of rules or a table")
        return Settings(
            ignore=below._rules(globs[glob], "ignore"), thresholds=below._thresholds(globs[glob])
        )

    def _below(self, key: str) -> _Source:
        name = key if _BARE.match(key) else f'"{key}"'
        return _Source(self.file, f"{self.key}.{name}" if self.key else name)

    def _error(self, key: str, what: str, hint: str = "") -> BnstatError:
        name = self._below(key).key if key else self.key
        return BnstatError(self.file, f"{name}: {what}", hint)

    def _check_keys(self, table: Any, known: Sequence[str], what: str = "a table") -> None:
        if not isinstance(table, dict):
            raise self._error("", f"is not {what}")
        for key in table:
            if key not in known:
                raise self._error(key, "there is no such setting", f"use {', '.join(known)}")

    def _rules(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        rules = table.get(key, [])
        if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
            raise self._error(key, "is not a list of rules in quotes")
        try:
            find_rules(rules)
        except BnstatError as error:
            raise self._error(key, f"{error.where}: {error.what}", error.hint) from None
        return tuple(rules)

    def _thresholds(self, table: Mapping[str, Any]) -> dict[str, float]:
        below = self._below("thresholds")
        given = table.get("thresholds", {})
        if not isinstance(given, dict):
            raise below._error("", "is not a table")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise below._error(name, "is not a number")
            try:
                Thresholds.of({name: float(value)})
            except OverflowError:
                raise below._error(name, "is too large a number") from None
            except BnstatError as error:
                raise below._error(name, error.what, error.hint) from None
        return {name: float(value) for name, value in given.items()}

    def _severity(self, table: Mapping[str, Any]) -> Severity | None:
        given = table.get("fail-on")
        if given is None:
            return None
        for severity in SEVERITIES:
            if given == severity:
                return severity
        raise self._error("fail-on", f"is not one of {', '.join(SEVERITIES)}")
