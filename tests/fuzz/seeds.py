"""The model files that the fuzzer starts from.

Some are in the repository. Some are written here by NumPy, h5py, TensorFlow and Keras, if these are
installed; the files of TensorFlow are kept in the temporary folder, because it is slow. Some are
public files and files of many versions of TensorFlow, if the machine has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from tests.conftest import SHARED

DATA = Path(__file__).resolve().parents[1] / "data"
LARGEST = 420_000
"""Bytes of a seed; larger ones take too long."""


@dataclass(frozen=True)
class Seed:
    """A model: its files by their paths, and the path that bnstat loads (empty for the folder
    itself).
    """

    name: str
    format: str
    files: dict[str, bytes]
    target: str = ""

    def write(self, folder: Path) -> Path:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / self.target

    def changed(self, name: str, content: bytes) -> Seed:
        return replace(self, files={**self.files, name: content})


@cache
def seeds() -> tuple[Seed, ...]:
    """Return all seeds that this machine has; TensorFlow writes some in half a minute, once."""
    folders = [DATA]
    if (written := _written_by_tensorflow()) is not None:
        folders.append(written)
    folders += [SHARED / name for name in ("written", "real") if (SHARED / name).is_dir()]
    by_content: dict[str, Seed] = {}
    for folder in folders:
        for seed in _in_folder(folder):
            digest = hashlib.sha256(repr(sorted(seed.files.items())).encode()).hexdigest()
            by_content.setdefault(digest + seed.target, seed)
    made = [*by_content.values(), *_made_by_hand()]
    own = [seed for seed in made if not seed.name.startswith(("written/", "real/"))]
    made += [archive for seed in own for archive in _archived(seed)]
    small = (seed for seed in made if sum(map(len, seed.files.values())) <= LARGEST)
    return tuple(sorted(small, key=lambda seed: (seed.format, seed.name)))


def _in_folder(top: Path) -> Iterator[Seed]:
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top.parent))
        if path.name == "saved_model.pb":
            inside = path.parent.rglob("*")
            files = _contents(path.parent, (file for file in inside if file.suffix in _SAVED_MODEL))
            yield Seed(name, "saved-model", files)
        elif path.name == "checkpoint":
            beside = (file for file in path.parent.iterdir() if file.suffix != ".meta")
            yield Seed(name, "state", _contents(path.parent, beside))
        elif path.suffix == ".index" and path.name != "variables.index":
            stem = path.name.removesuffix("index")
            beside = (*path.parent.glob(f"{stem}*"), path.with_name("checkpoint"))
            files = _contents(path.parent, beside)
            without_graph = {key: data for key, data in files.items() if ".meta" not in key}
            yield Seed(name, "bundle", without_graph, path.name)
            if f"{stem}meta" in files:
                yield Seed(name, "graph-beside", files, path.name)
        elif path.name.endswith(".weights.json"):
            stem = path.name.removesuffix(".weights.json")
            files = _contents(path.parent, path.parent.glob(f"{stem}*"))
            yield Seed(name, "json", files, path.name)
        elif path.is_file() and (format_ := _format_of(path)):
            yield Seed(name, format_, {path.name: path.read_bytes()}, path.name)


def _contents(folder: Path, files: Iterable[Path]) -> dict[str, bytes]:
    found = sorted(file for file in files if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def _format_of(path: Path) -> str | None:
    if ".ckpt" in path.name and not path.suffix.startswith((".index", ".meta", ".data-")):
        return "v1"
    return None if path.name in ("keras_metadata.pb", "fingerprint.pb") else _ALONE.get(path.suffix)


_SAVED_MODEL = (".pb", ".index", ".data-00000-of-00001")
_ALONE = {
    ".h5": "hdf5", ".hdf5": "hdf5", ".keras": "keras", ".msgpack": "msgpack", ".pb": "graph",
    ".pkl": "pickle", ".tflite": "tflite",
}  # fmt: skip


def formats() -> list[str]:
    """Return the names of the seeds' formats."""
    return sorted({seed.format for seed in seeds()})


def _made_by_hand() -> Iterator[Seed]:
    from tests.builders import flatbuffers
    from tests.fuzz import handmade, ports

    tflite = {
        f"{kind}.tflite": flatbuffers.hand_made(kind, (4,), bytes(range(size)), scale)
        for kind, size, scale in ((0, 16, 0.0), (9, 4, 0.5), (17, 2, 0.5))
    }
    single = {
        "hdf5": handmade.hdf5_files(),
        "keras": {"m.keras": handmade.keras_archive()},
        "tflite": tflite,
        "v1": {"m.ckpt": handmade.v1()},
        **ports.array_files(),
    }
    graph = ports.tfjs_files(ports.tfjs_graph("net/bn"), "net/bn", ports.in_bytes)
    layers = ports.tfjs_files({"model_config": handmade.config()}, "bn0")
    several = {
        ("bundle", "m.index"): handmade.bundles(),
        ("json", "m.weights.json"): {"sharded.weights": handmade.sharded()},
        ("onnx", "m.onnx"): ports.onnx_files(),
        ("orbax", ""): _orbax(),
        ("sharded", "m.safetensors.index.json"): {"sharded": ports.sharded_files()},
        ("tfjs", "model.json"): {"tfjs-graph": graph, "tfjs-layers": layers},
        ("tfjs", "weights_manifest.json"): {"tfjs-early": ports.early_tfjs_files("net/bn")},
    }
    for format_, contents in single.items():
        for name, content in contents.items():
            yield Seed(f"handmade/{name}", format_, {name: content}, name)
    for (format_, target), models in several.items():
        for name, files in models.items():
            yield Seed(f"handmade/{name}", format_, files, target)


def _orbax() -> dict[str, dict[str, bytes]]:
    from tests.builders.orbax import FLAX, write_item
    from tests.fuzz import handmade

    models = {}
    tree = dict(zip(FLAX, handmade.values().values(), strict=True))
    layouts = ("ocdbt-zarr", "ocdbt-zarr3", "folders-zarr")
    for layout in layouts if importlib.util.find_spec("tensorstore") else ():
        with tempfile.TemporaryDirectory() as folder:
            item = write_item(Path(folder) / "item", tree, layout)
            models[f"orbax-{layout}"] = _contents(item, item.rglob("*"))
    return models


def _archived(seed: Seed) -> Iterator[Seed]:
    """Yield small models of several files as archives."""
    from tests.fuzz.handmade import tar, zipped

    is_small = len(seed.files) <= 8 and sum(map(len, seed.files.values())) <= 60_000
    if is_small and seed.format in ("saved-model", "bundle", "state"):
        packed = {"tar": tar(seed.files, "w"), "tar.gz": tar(seed.files, "w:gz")}
        packed["zip"] = zipped(list(seed.files.items()))
        for suffix, content in packed.items():
            yield Seed(f"{seed.name}.{suffix}", "archive", {f"m.{suffix}": content}, f"m.{suffix}")


def _written_by_tensorflow() -> Path | None:
    """Return files that TensorFlow and Keras write, or None if these are not installed."""
    script = Path(__file__).with_name("write_seeds.py")
    digest = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"bnstat-fuzz-seeds-{digest}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            command = [sys.executable, "-m", "tests.fuzz.write_seeds", unfinished]
            root = script.parents[2]
            if subprocess.run(command, cwd=root, capture_output=True, check=False).returncode:
                return None
            with contextlib.suppress(OSError):  # another run was faster
                os.rename(Path(unfinished) / "seeds", folder)
    return folder
