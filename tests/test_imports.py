"""Imports of the commands: TensorFlow never, other heavy modules only if a file needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.formats.tensorflow import checkpoint

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests/data/digits"
HEAVY = {
    "aiohttp",
    "fsspec",
    "h5py",
    "jinja2",
    "jsonschema",
    "keras",
    "ml_dtypes",
    "tarfile",
    "tensorflow",
    "tf_keras",
    "zipfile",
}
DISPLAY = {
    "bnstat.keras",
    "bnstat.output.notebook",
    "matplotlib",
    "pandas",
    "polars",
    "tensorboard",
}
"""Modules that only notebooks and the callback import."""

OF_GRAPHS = {
    "bnstat.formats.hdf5",
    "bnstat.formats.keras.config",
    "bnstat.formats.protobuf.protos",
    "bnstat.formats.tensorflow.checkpoint_v1",
    "bnstat.formats.tensorflow.graph_def",
    "bnstat.formats.tensorflow.frozen_graph",
    "bnstat.formats.tensorflow.saved_model",
}
"""Modules that a checkpoint without a graph does not need."""

OF_SCANS = {"concurrent.futures.process", "distributed", "dask", "pyarrow", "sqlite3"}

_RUN = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ImportError(name + " is refused")

sys.meta_path.insert(0, Refuse())
sys.argv = ["bnstat", *{arguments!r}]
code = 0
try:
    from bnstat.cli import main
    main()
except SystemExit as end:
    code = end.code
sys.stdout.flush()
modules = sorted({{name.partition(".")[0] for name in sys.modules}} | set(sys.modules))
print("\\n" + json.dumps([code or 0, modules]))
"""


def run(*arguments: Any, refused: tuple[str, ...] = ()) -> tuple[int, set[str], str]:
    """Run a command in its own process; return the exit code, the loaded modules and the output."""
    script = _RUN.format(arguments=[str(argument) for argument in arguments], refused=refused)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    assert last, done.stderr
    code, modules = json.loads(last)
    return code, set(modules), output


@pytest.fixture(scope="module")
def h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a minimal weights file of Keras 2."""
    path = tmp_path_factory.mktemp("h5") / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"bn"]
        group = file.create_group("bn")
        names = [f"bn/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for number, name in enumerate(names):
            group.create_dataset(name, data=np.full(3, number, np.float32))
    return path


COMMANDS = [
    ("inspect",),
    ("inspect", "--values"),
    ("inspect", "--no-values"),
    ("export", "--json"),
    ("export", "--csv"),
    ("check",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_checkpoint_by_names_needs_nothing_heavy(command: tuple[str, ...]) -> None:
    code, modules, output = run(command[0], DATA / "run/model-100", *command[1:])
    assert code == 0
    assert "block1/bn" in output or command == ("check",)
    assert not modules & (HEAVY | DISPLAY | OF_SCANS | {"google.protobuf", "bnstat.scanning"})
    assert not modules & {*OF_GRAPHS, "bnstat.output.terminal.drawing"}
    assert ("bnstat.checks.settings" in modules) == (command == ("check",))


def test_a_checkpoint_by_objects_needs_nothing_heavy(tmp_path: Path) -> None:
    from tests.fuzz import handmade

    for name, content in handmade.object_bundle(*handmade.bn_graph()).items():
        (tmp_path / name).write_bytes(content)
    _, modules, output = run("inspect", tmp_path)
    assert "tf2-checkpoint" in output
    assert not modules & (HEAVY | OF_GRAPHS | {"google.protobuf"})


def test_a_checkpoint_with_a_graph_does_not_need_the_reader_of_hdf5() -> None:
    _, modules, output = run("inspect", DATA / "run")
    assert "model-400" in output
    assert "bnstat.formats.tensorflow.graph_def" in modules
    assert not modules & {"bnstat.formats.hdf5", "bnstat.formats.keras.config"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_saved_model_needs_only_protobuf(command: tuple[str, ...]) -> None:
    code, modules, _ = run(command[0], DATA / "saved_model", *command[1:])
    assert code == 0
    assert "google.protobuf" in modules
    assert not modules & HEAVY


def test_an_hdf5_file_needs_nothing_heavy(h5: Path) -> None:
    code, modules, output = run("inspect", h5)
    assert code == 0
    assert "bn" in output
    assert not modules & (HEAVY | {"google.protobuf"})


@pytest.mark.parametrize("name", ["m.onnx", "m.safetensors", "state.pt", "legacy.pt"])
def test_formats_of_other_libraries_need_none_of_these_libraries(tmp_path: Path, name: str) -> None:
    from tests.fuzz import ports

    files = {**ports.onnx_files()["plain"], "m.safetensors": ports.safetensors()}
    (tmp_path / name).write_bytes({**files, **ports.pytorch_files()}[name])
    code, modules, output = run("inspect", tmp_path / name)
    assert code == 0
    assert "a " in output
    assert not modules & {"torch", "onnx", "safetensors", "pickle5"}
    assert ("google.protobuf" in modules) is (name == "m.onnx")
    assert not modules & (HEAVY - {"zipfile", "tarfile"})


def test_a_report_needs_only_its_template_engine(tmp_path: Path) -> None:
    code, modules, _ = run("report", DATA / "run/model-100", "-o", tmp_path / "report.html")
    assert code == 0
    assert "jinja2" in modules
    assert not modules & (HEAVY - {"jinja2"} | {"google.protobuf"})


def test_a_report_without_its_template_engine_fails(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    code, _, _ = run("report", DATA / "run/model-100", "-o", target, refused=("jinja2",))
    assert code == 2
    assert not target.exists()


def test_apply_to_a_checkpoint_needs_nothing_heavy(tmp_path: Path) -> None:
    run_of = DATA / "run"
    code, modules, _ = run("apply", run_of / "model-100", run_of / "model-0", "-o", tmp_path / "c")
    assert code == 0
    assert (tmp_path / "c.index").exists()
    assert not modules & (HEAVY | {"google.protobuf"})


def test_a_scan_imports_what_it_is_asked_for_alone(tmp_path: Path) -> None:
    code, modules, output = run("scan", DATA / "run", "--json", "-q")
    assert code == 0
    assert len(output.splitlines()) == 5
    assert not modules & (HEAVY | OF_SCANS | {"bnstat.mending"})
    _, modules, _ = run("scan", DATA / "run", "--jobs", "2", "--state", tmp_path / "state.db")
    assert modules & OF_SCANS == {"concurrent.futures.process", "sqlite3"}


TARGETS = ["run", "run/model-100.index", "saved_model", "saved_model/variables"]


@pytest.mark.parametrize("target", TARGETS)
def test_commands_work_without_tensorflow(target: str) -> None:
    for command in ("inspect", "export"):
        arguments = [command, DATA / target, *(["--json"] if command == "export" else [])]
        without = run(*arguments, refused=("tensorflow", "keras", "tf_keras"))
        assert without[0] == 0
        assert without[2] == run(*arguments)[2]


def test_keras_files_without_keras_and_tensorflow(h5: Path) -> None:
    code, _, output = run("export", h5, "--json", refused=("tensorflow", "keras", "tf_keras"))
    assert code == 0
    (layer,) = json.loads(output)["layers"]
    assert layer["moving_variance"]["values"] == [3.0, 3.0, 3.0]


RUNNING = ("--data", ROOT / "tests/data/digits_test.npz")
NEEDING_TENSORFLOW = {
    "for the reader 'tensorflow'": ("inspect", DATA / "run", "--reader", "tensorflow"),
    "to run a model": ("drift", DATA / "saved_model", *RUNNING),
}
MISSING = "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')"
BROKEN = "raise type('VersionError', (Exception,), {})('gencode 6.31 runtime 5.29.\\nmore')"


@pytest.mark.parametrize("purpose", NEEDING_TENSORFLOW)
@pytest.mark.parametrize(
    ("module", "reason", "hint"),
    [
        (MISSING, "No module named 'tensorflow'", None),
        (BROKEN, "gencode 6.31 runtime 5.29.", "pip install --upgrade tensorflow protobuf"),
    ],
)
def test_tensorflow_that_cannot_be_imported(
    tmp_path: Path, purpose: str, module: str, reason: str, hint: str | None
) -> None:
    (tmp_path / "tensorflow.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-m", "bnstat", *map(str, NEEDING_TENSORFLOW[purpose])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert (done.returncode, done.stdout) == (2, "")
    if hint is None:
        no_release = "TensorFlow has no release for Python {}.{}: use Python 3.10 to 3.13"
        is_new = sys.version_info >= (3, 14)
        hint = no_release.format(*sys.version_info) if is_new else "pip install tensorflow"
    assert done.stderr == (
        f"error: TensorFlow: is needed {purpose}, and cannot be imported ({reason}); {hint}\n"
    )


def test_tensorflow_on_a_python_for_which_it_has_no_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint.sys, "version_info", (3, 14, 2))
    with (
        pytest.raises(bnstat.BnstatError) as error,
        checkpoint.importing_tensorflow("to run a model"),
    ):
        exec(MISSING)
    assert error.value.hint == "TensorFlow has no release for Python 3.14: use Python 3.10 to 3.13"


@pytest.mark.parametrize("statement", ["import bnstat", "import bnstat; bnstat.BnstatError"])
def test_importing_the_package_does_not_import_numpy(statement: str) -> None:
    script = f"{statement}; import sys; print('numpy' in sys.modules, 'click' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_public_names() -> None:
    for name in bnstat.__all__:
        assert getattr(bnstat, name) is not None
    assert set(bnstat.__all__) <= set(dir(bnstat))
    with pytest.raises(AttributeError, match="nothing"):
        bnstat.nothing  # noqa: B018
