"""Imports of the commands: TensorFlow never, other heavy modules only if a file needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bnstat
from bnstat.formats.tensorflow import checkpoint
from tests.cli.files import in_child
from tests.fuzz import handmade, ports

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests/data/digits"
HEAVY = {
    *("aiohttp", "fsspec", "h5py", "jinja2", "jsonschema", "keras", "ml_dtypes"),
    *("tarfile", "tensorflow", "tf_keras", "zipfile"),
}
DISPLAY = {
    *("bnstat.keras", "bnstat.output.notebook", "matplotlib", "pandas", "polars", "tensorboard")
}
"""Modules that only notebooks and the callback import."""

OF_GRAPHS = {
    *("bnstat.formats.hdf5", "bnstat.formats.keras.config", "bnstat.formats.protobuf.protos"),
    *(f"bnstat.formats.tensorflow.{name}" for name in ("graph_def", "frozen_graph", "saved_model")),
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


INSPECT = ("inspect", "inspect --values", "inspect --no-values")
COMMANDS = (*INSPECT, "export --json", "export --csv", "check")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_by_names_needs_nothing_heavy(command: str) -> None:
    code, modules, output = run(*command.split(), DATA / "run/model-100")
    assert code == 0
    assert "block1/bn" in output or command == "check"
    assert not modules & (HEAVY | DISPLAY | OF_SCANS | {"google.protobuf", "bnstat.scanning"})
    assert not modules & {*OF_GRAPHS, "bnstat.output.terminal.drawing"}
    assert ("bnstat.output.documents" in modules) == (command == "check")
    assert ("bnstat.checks.settings" in modules) == (command == "check")


OBJECTS = handmade.object_bundle(*handmade.bn_graph())
PROTOBUF = {"google.protobuf"}
KERAS = {"bnstat.formats.keras.config"}
ZIP = {"zipfile", "tarfile"}


@pytest.mark.parametrize(
    ("files", "target", "allowed"),
    [
        (OBJECTS, "m.index", set()),
        (ports.tfjs_files({"model_config": handmade.config()}, "bn0"), "model.json", KERAS),
        (handmade.hdf5_files(), "legacy.h5", OF_GRAPHS),
        (ports.onnx_files()["plain"], "m.onnx", OF_GRAPHS | PROTOBUF),
        ({"m.safetensors": ports.safetensors()}, "m.safetensors", OF_GRAPHS | ZIP),
        (ports.pytorch_files(), "state.pt", OF_GRAPHS | ZIP),
        (ports.pytorch_files(), "legacy.pt", OF_GRAPHS | ZIP),
    ],
)
def test_a_format_needs_nothing_heavy_and_no_library_of_its_own(
    tmp_path: Path, files: dict[str, bytes], target: str, allowed: set[str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code, modules, output = run("inspect", tmp_path / target)
    assert code == 0
    assert "layers" in output
    libraries = {"torch", "onnx", "safetensors", "pickle5"}
    assert not modules & (HEAVY | OF_GRAPHS | PROTOBUF | libraries) - allowed


def test_a_checkpoint_with_a_graph_does_not_need_the_reader_of_hdf5() -> None:
    _, modules, output = run("inspect", DATA / "run")
    assert "model-400" in output
    assert "bnstat.formats.tensorflow.graph_def" in modules
    assert not modules & {*HEAVY, "bnstat.formats.hdf5", "bnstat.formats.keras.config"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_saved_model_needs_only_protobuf(command: str) -> None:
    target = DATA / ("saved_model/variables" if command == "inspect" else "saved_model")
    code, modules, _ = run(*command.split(), target)
    assert code == 0
    assert "google.protobuf" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("refused", [(), ("jinja2",)])
def test_a_report_needs_only_its_template_engine(tmp_path: Path, refused: tuple[str, ...]) -> None:
    target = tmp_path / "report.html"
    code, modules, _ = run("report", DATA / "run/model-100", "-o", target, refused=refused)
    assert code == (2 if refused else 0)
    assert ("jinja2" in modules) is target.exists() is not bool(refused)
    assert not modules & (HEAVY - {"jinja2"} | PROTOBUF)


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


RUN = "tests/data/digits/run/model-100"


@pytest.mark.parametrize(
    ("arguments", "needed", "left_out"),
    [
        ("--help", "click", "numpy rich bnstat.model bnstat.cli.inspect"),
        ("--version", "click", "numpy rich bnstat.model bnstat.cli.inspect"),
        ("help", "bnstat.docs", "rich tensorflow h5py bnstat.formats.locate bnstat.loading"),
        ("help safety", "rich", "tensorflow h5py bnstat.formats.locate bnstat.loading"),
        (
            f"inspect {RUN}",
            "bnstat.cli.inspect",
            "bnstat.cli.export bnstat.cli.check bnstat.cli.help bnstat.docs rich tensorflow h5py "
            "bnstat.output.terminal.listing bnstat.output.terminal.markdown bnstat.exchange.json",
        ),
        (f"export --csv {RUN}", "bnstat.exchange.csv", "bnstat.exchange.json bnstat.exchange.npz"),
    ],
)
def test_commands_import_no_more_than_they_need(arguments: str, needed: str, left_out: str) -> None:
    _, modules, _ = run(*arguments.split())
    assert needed in modules
    assert not set(left_out.split()) & modules


MISSING = "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')"
BROKEN = "raise type('VersionError', (Exception,), {})('gencode 6.31 runtime 5.29.\\nmore')"


@pytest.mark.parametrize(
    ("purpose", "command"),
    [
        ("for the reader 'tensorflow'", ("inspect", DATA / "run", "--reader", "tensorflow")),
        ("to run a model", ("drift", DATA / "saved_model", "--data", "tests/data/digits_test.npz")),
    ],
)
def test_tensorflow_that_cannot_be_imported(
    tmp_path: Path, purpose: str, command: tuple[object, ...]
) -> None:
    (tmp_path / "tensorflow.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = in_child(*command, env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: TensorFlow: is needed {purpose}, and cannot be imported (gencode 6.31 runtime "
        "5.29.); pip install --upgrade tensorflow protobuf\n"
    )


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ((3, 13, 1), "pip install tensorflow"),
        ((3, 14, 2), "TensorFlow has no release for Python 3.14: use Python 3.10 to 3.13"),
    ],
)
def test_tensorflow_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], hint: str
) -> None:
    monkeypatch.setattr(checkpoint.sys, "version_info", version)
    with (
        pytest.raises(bnstat.BnstatError) as error,
        checkpoint.importing_tensorflow("to run a model"),
    ):
        exec(MISSING)
    reason = "is needed to run a model, and cannot be imported (No module named 'tensorflow')"
    assert (error.value.what, error.value.hint) == (reason, hint)


def test_importing_the_package_does_not_import_numpy() -> None:
    script = "import bnstat, sys; bnstat.BnstatError; print({'numpy', 'click'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_public_names() -> None:
    for name in bnstat.__all__:
        assert getattr(bnstat, name) is not None
    assert set(bnstat.__all__) <= set(dir(bnstat))
    with pytest.raises(AttributeError, match="nothing"):
        bnstat.nothing  # noqa: B018
