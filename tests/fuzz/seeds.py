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


FORMATS = (
    "archive", "bundle", "graph", "graph-beside", "hdf5", "json", "keras", "msgpack", "npz", "onnx",
    "orbax", "pickle", "pytorch", "safetensors", "saved-model", "sharded", "state", "tfjs",
    "tflite", "v1",
)  # fmt: skip
"""The formats of the seeds."""


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
def seeds(tensorflow: bool = True) -> tuple[Seed, ...]:
    """Return all seeds that this machine has; TensorFlow writes some in half a minute, once."""
    folders = [DATA]
    if tensorflow and (written := _written_by_tensorflow()) is not None:
        folders.append(written)
    folders += [SHARED / name for name in ("written", "real") if (SHARED / name).is_dir()]
    by_content: dict[str, Seed] = {}
    for folder in folders:
        for seed in _in_folder(folder):
            digest = hashlib.sha256(repr(sorted(seed.files.items())).encode()).hexdigest()
            by_content.setdefault(digest + seed.target, seed)
    made = [*by_content.values(), *_made_by_hand()]
    wild = tuple(f"{name}/" for name in ("written", "real"))
    own = [seed for seed in made if not seed.name.startswith(wild)]
    made += [archive for seed in own for archive in _archived(seed)]
    small = (seed for seed in made if sum(map(len, seed.files.values())) <= LARGEST)
    return tuple(sorted(small, key=lambda seed: (seed.format, seed.name)))


def _in_folder(top: Path) -> Iterator[Seed]:
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top.parent))
        if path.name == "saved_model.pb":
            inside = path.parent.rglob("*")
            files = _contents(path.parent, (file for file in inside if _is_of_saved_model(file)))
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


def _is_of_saved_model(file: Path) -> bool:
    return file.suffix in (".pb", ".index", ".data-00000-of-00001")


def _format_of(path: Path) -> str | None:
    if ".ckpt" in path.name and not path.suffix.startswith((".index", ".meta", ".data-")):
        return "v1"
    return None if path.name in ("keras_metadata.pb", "fingerprint.pb") else _ALONE.get(path.suffix)


_ALONE = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".keras": "keras",
    ".msgpack": "msgpack",
    ".pb": "graph",
    ".pkl": "pickle",
    ".tflite": "tflite",
}


def _made_by_hand() -> Iterator[Seed]:
    from tests.builders import flatbuffers
    from tests.fuzz import handmade, ports

    for name, content in handmade.hdf5_files().items():
        yield Seed(f"handmade/{name}", "hdf5", {name: content}, name)
    yield Seed("handmade/m.keras", "keras", {"m.keras": handmade.keras_archive()}, "m.keras")
    for name, content in handmade.npz_files().items():
        yield Seed(f"handmade/{name}", "npz", {name: content}, name)
    for name, files in handmade.bundles().items():
        yield Seed(f"handmade/{name}", "bundle", files, "m.index")
    yield Seed("handmade/v1", "v1", {"m.ckpt": handmade.v1()}, "m.ckpt")
    for name, files in ports.onnx_files().items():
        yield Seed(f"handmade/{name}.onnx", "onnx", files, "m.onnx")
    yield Seed("handmade/m.safetensors", "safetensors", {"m": ports.safetensors()}, "m")
    yield Seed("handmade/sharded", "sharded", ports.sharded_files(), "m.safetensors.index.json")
    layers = ports.tfjs_files({"model_config": handmade.config()}, "bn0")
    graph = ports.tfjs_files(ports.tfjs_graph("net/bn"), "net/bn", ports.in_bytes)
    for name, files in (("layers", layers), ("graph", graph)):
        yield Seed(f"handmade/tfjs-{name}", "tfjs", files, "model.json")
    early = ports.early_tfjs_files("net/bn")
    yield Seed("handmade/tfjs-early", "tfjs", early, "weights_manifest.json")
    for name, content in ports.pytorch_files().items():
        yield Seed(f"handmade/{name}", "pytorch", {name: content}, name)
    for kind, scale in ((0, 0.0), (9, 0.5), (17, 0.5)):
        content = flatbuffers.hand_made(kind, (4,), bytes(range({0: 16, 9: 4, 17: 2}[kind])), scale)
        yield Seed(f"handmade/{kind}.tflite", "tflite", {"m.tflite": content}, "m.tflite")
    yield from _orbax()
    yield Seed("handmade/sharded", "json", handmade.sharded(), "m.weights.json")


def _orbax() -> Iterator[Seed]:
    from tests.builders.orbax import write_item
    from tests.fuzz import handmade

    if importlib.util.find_spec("tensorstore") is None:
        return
    places = ("params/scale", "params/bias", "batch_stats/mean", "batch_stats/var")
    tree = {
        (place.split("/")[0], "bn", place.split("/")[1]): array
        for place, array in zip(places, handmade.values().values(), strict=True)
    }
    for layout in ("ocdbt-zarr", "ocdbt-zarr3", "folders-zarr"):
        with tempfile.TemporaryDirectory() as folder:
            item = write_item(Path(folder) / "item", tree, layout)
            files = _contents(item, item.rglob("*"))
        yield Seed(f"handmade/orbax-{layout}", "orbax", files)


def _archived(seed: Seed) -> Iterator[Seed]:
    """Yield small models of several files as archives."""
    if seed.format not in ("saved-model", "bundle", "state") or len(seed.files) > 8:
        return
    if sum(map(len, seed.files.values())) > 60_000:
        return
    from tests.fuzz import handmade

    for suffix, content in (
        ("tar", handmade.tar(seed.files, "w")),
        ("tar.gz", handmade.tar(seed.files, "w:gz")),
        ("zip", handmade.zipped(list(seed.files.items()))),
    ):
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
