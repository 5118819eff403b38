from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat import docs
from bnstat.checks import SEVERITIES, Finding
from bnstat.checks.settings import Settings, read, resolve
from bnstat.errors import BnstatError
from tests.checks.cases import but
from tests.output import models


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with a model in `models/old/a.h5`."""
    (tmp_path / "models/old").mkdir(parents=True)
    (tmp_path / "models/old/a.h5").touch()
    return tmp_path


def find(path: str) -> Settings:
    return resolve([path], Settings())[path]


def ignored(path: Path) -> tuple[str, ...]:
    return find(str(path)).ignore


EVERYTHING = """\
select = ["BN0", "frozen"]
ignore = ["near-zero-gamma"]
fail-on = "error"
thresholds = { gamma = 1, scale = 2.5 }
"""
ALL_SET = Settings(("BN0", "frozen"), ("near-zero-gamma",), {"gamma": 1.0, "scale": 2.5}, "error")
PER_PATH = """\
ignore = ["BN001"]
thresholds = { gamma = 1, beta = 1 }
[per-path]
old = ["BN002"]
"*.h5" = { ignore = ["BN003"], thresholds = { gamma = 2 } }
"*.keras" = { thresholds = { gamma = 3 } }
"""
BN001, BN002 = Settings(ignore=("BN001",)), Settings(ignore=("BN002",))
OWN = {"bnstat.toml": 'ignore = ["BN002"]'}
SHARED = {"pyproject.toml": '[tool.bnstat]\nignore = ["BN001"]'}
MATCHING = ("models/old/a.h5", "models/old", "models/old/", "models/*", "models/**/*.h5", "*.h5",
            "old", "a.*", "*")  # fmt: skip


@pytest.mark.parametrize(
    ("files", "path", "expected"),
    [
        ({"bnstat.toml": EVERYTHING}, "models", ALL_SET),
        ({"pyproject.toml": f"[tool.bnstat]\n{EVERYTHING}"}, "models", ALL_SET),
        # Only the nearest file is used.
        (SHARED, "models/old/a.h5", BN001),
        ({**SHARED, **OWN}, "models/old/a.h5", BN002),
        ({**OWN, "models/bnstat.toml": "select = ['BN003']"}, "models/old/a.h5",
         Settings(select=("BN003",))),
        ({**OWN, "models/bnstat.toml": ""}, "models/old/model-100", Settings()),
        ({**OWN, "models/bnstat.toml": ""}, "", BN002),
        ({**OWN, "models/old/bnstat.toml": 'ignore = ["BN001"]'}, "models/old", BN001),
        # Other pyprojects are skipped.
        *(({**OWN, "models/pyproject.toml": text}, "models/old/a.h5", BN002) for text in (
            "", "[tool.ruff]", "[tool.ruff]\n# not bnstat", 'tool = "bnstat"', "not TOML [")),
        # A glob matches a path or one of its folders.
        *(({"bnstat.toml": f'[per-path]\n"{glob}" = ["BN001"]'}, "models/old/a.h5",
           BN001 if glob in MATCHING else Settings())
          for glob in (*MATCHING, "*.keras", "model", "old/a.h5", "models/new", "MODELS")),
        ({"bnstat.toml": PER_PATH}, "models/old/a.h5",
         Settings(ignore=("BN001", "BN002", "BN003"), thresholds={"gamma": 2, "beta": 1})),
    ],
)  # fmt: skip
def test_the_settings_of_a_path(files: Any, path: str, expected: Settings, project: Path) -> None:
    for name, text in files.items():
        (project / name).write_text(text)
    assert find(str(project / path)) == expected
    if expected == ALL_SET:
        assert read(str(project / next(iter(files)))).settings == expected


def test_the_example_of_the_documentation(project: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", docs.read("check"), re.DOTALL)
    (project / "pyproject.toml").write_text(example)
    (project / "legacy").mkdir()
    assert find(str(project / "legacy/a.weights.h5")) == Settings(
        ("BN0",), ("near-zero-gamma", "BN001", "BN006"), {"gamma": 0.01, "scale": 1e4}, "error"
    )
    own = example.replace("tool.bnstat.", "").replace("[tool.bnstat]\n", "")
    (project / "bnstat.toml").write_text(own)
    assert find(str(project)) == Settings(("BN0",), ("near-zero-gamma",), {"gamma": 0.01}, "error")


def test_the_path_may_be_relative(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "bnstat.toml").write_text('ignore = ["BN001"]\nper-path."models/old" = ["BN002"]')
    monkeypatch.chdir(project / "models")
    assert find(".").ignore == ("BN001",)
    assert find("old/a.h5").ignore == ("BN001", "BN002")
    assert find("../models/old").ignore == ("BN001", "BN002")
    monkeypatch.chdir(project / "models/old")
    assert find(".").ignore == ("BN001", "BN002")


def test_settings_of_the_user_take_precedence() -> None:
    project = Settings(("BN001",), ("BN002",), {"gamma": 1, "beta": 1}, "error")
    assert Settings().over(project) == project
    given = Settings((), ("BN003",), {"gamma": 2}, "info")
    merged = Settings(("BN001",), ("BN002", "BN003"), {"gamma": 2, "beta": 1}, "info")
    assert given.over(project) == merged
    # A selection replaces what the project ignores.
    given = Settings(("BN0",), ("BN003",))
    assert given.over(Settings((), ("BN002",))) == given


def test_settings_decide_which_rules_apply() -> None:
    arrays = but("moving_variance", c1=-1.0, c2=0.0).arrays
    model = models.model(models.layer("bn", arrays))

    def rules(*settings: Any, **thresholds: float) -> list[str]:
        return [each.rule for each in Settings(*settings, thresholds).check(model)]

    assert rules() == ["BN005", "BN006"]
    assert rules(("BN005",)) == ["BN005"]
    assert rules((), ("BN005",)) == ["BN006"]
    assert rules((), (), gamma=1e6) == ["BN005", "BN006", *rules(("BN009", "BN010"), (), gamma=1e6)]
    assert len(rules((), (), gamma=1e6)) > 2
    with pytest.raises(BnstatError, match="is not a threshold"):
        rules((), (), gama=1)


@pytest.mark.parametrize(
    ("fail_on", "count"), [(None, 2), ("error", 1), ("warning", 2), ("info", 3)]
)
def test_the_severity_that_fails_a_check(fail_on: Any, count: int) -> None:
    settings = Settings(fail_on=fail_on)
    assert settings.fail([]) is False
    none = np.empty(0, np.intp)
    findings = [Finding("BN001", "x", severity, None, none, "") for severity in SEVERITIES]
    assert settings.fail(findings) is True
    assert [settings.fail([finding]) for finding in findings] == [n < count for n in range(3)]


def test_options_take_precedence_over_the_project(project: Path) -> None:
    (project / "bnstat.toml").write_text('ignore = ["BN001"]')
    (project / "other.toml").write_text('ignore = ["BN002"]')
    paths = [str(project / "models/old/a.h5"), str(project.parent)]
    given = Settings(ignore=("BN003",))

    def ignores(**options: Any) -> list[tuple[str, ...]]:
        found = resolve(paths, given, **options)
        assert list(found) == paths
        return [settings.ignore for settings in found.values()]

    assert ignores() == [("BN001", "BN003"), ("BN003",)]
    assert ignores(config_file=str(project / "other.toml")) == [("BN002", "BN003")] * 2
    assert ignores(isolated=True) == [("BN003",)] * 2


@pytest.mark.parametrize(
    "given",
    [{"select": ("BN999",)}, {"ignore": ("BN999",)}, {"thresholds": {"gama": 1}},
     {"thresholds": {"gamma": 0}}],
)  # fmt: skip
def test_wrong_options_are_errors_before_any_file_is_read(given: dict[str, Any]) -> None:
    with pytest.raises(BnstatError, match=r"of a rule|not a threshold|above 0"):
        resolve([], Settings(**given), isolated=True)


WRONG = [
    ("selct = []", "selct: there is no such setting; use select, ignore"),
    ('select = "BN001"', "select: is not a list of rules"),
    ("ignore = [1]", "ignore: is not a list of rules"),
    ('select = ["BN999"]', "select: 'BN999': is not a name or code of a rule"),
    ('fail-on = "never"', "fail-on: is not one of error, warning, info"),
    ("fail-on = 1", "fail-on: is not one of"),
    ("thresholds = 1", "thresholds: is not a table"),
    ("thresholds.gama = 1", "thresholds.gama: is not a threshold; use initial"),
    ('thresholds.gamma = "1"', "thresholds.gamma: is not a number"),
    ("thresholds.gamma = true", "thresholds.gamma: is not a number"),
    ("thresholds.gamma = 0", "thresholds.gamma: a threshold is a number above 0"),
    ("thresholds.gamma = nan", "thresholds.gamma: a threshold is a number above 0"),
    (f"thresholds.gamma = 1{'0' * 400}", "thresholds.gamma: is too large a number"),
    ("per-path = []", "per-path: is not a table"),
    ('per-path."*.h5" = 1', 'per-path."*.h5": is not a list of rules or a table'),
    ('per-path."*.h5" = ["BN999"]', "per-path.\"*.h5\": 'BN999': is not a name"),
    ('per-path."*.h5".select = []', 'per-path."*.h5".select: there is no such setting'),
    ('per-path."*.h5".thresholds.gamma = 0', 'per-path."*.h5".thresholds.gamma: a threshold'),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:40] for text, _ in WRONG])
def test_errors_contain_the_file_and_the_key(text: str, message: str, project: Path) -> None:
    forms = (("pyproject.toml", "[tool.bnstat]", "tool.bnstat."), ("bnstat.toml", "", ""))
    for name, table, key in forms:
        file = project / name
        file.write_text(f"{table}\n{text}")
        with pytest.raises(BnstatError) as error:
            find(str(project / "models"))
        assert str(error.value).startswith(f"{file}: {key}{message}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"select = [", b"\xff\xfe", b"a = 1\na = 2", b"select = " + b"[" * 100_000,
     b"thresholds.gamma = " + b"9" * 100_000],
)  # fmt: skip
def test_files_that_are_not_toml(data: bytes, project: Path) -> None:
    (project / "bnstat.toml").write_bytes(data)
    with pytest.raises(BnstatError, match=r"bnstat\.toml: is not valid TOML") as error:
        find(str(project))
    assert "\n" not in str(error.value)


def test_a_file_by_name(project: Path) -> None:
    with pytest.raises(BnstatError, match="cannot be read: No such file"):
        read(str(project / "other.toml"))
    with pytest.raises(BnstatError, match="cannot be read: Is a directory"):
        read(str(project))
    (project / "pyproject.toml").write_text("[tool.ruff]")
    with pytest.raises(BnstatError, match=r"has no table \[tool\.bnstat\]"):
        read(str(project / "pyproject.toml"))
    (project / "other.toml").write_text('per-path."models/*" = ["BN001"]')
    config = read(str(project / "other.toml"))
    assert config.settings_for(str(project / "models/old/a.h5")).ignore == ("BN001",)
    assert config.settings_for(str(project.parent / "elsewhere.h5")).ignore == ()
