"""The commands of bnstat as whole processes, in turn with their peers."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    IMPORTS,
    ROOT,
    Result,
    Run,
    bnstat,
    build,
    compared,
    cpu,
    in_turn,
    peak,
    printed,
    run,
    script,
    wall,
)

TENSORFLOW = """
import sys
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1])
for key in sorted(reader.get_variable_to_shape_map()):
    name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
    if name.endswith(("/gamma", "/beta", "/moving_mean", "/moving_variance")):
        value = reader.get_tensor(key)
        print(name, value.mean(), value.std(), value.min(), value.max())
"""
READ = """
import sys
import bnstat

def counted():
    with open("/proc/self/io") as accounts:
        return int(accounts.readline().split()[1])

def everything():
    layers = bnstat.load(sys.argv[1])
    return sum(v.read().nbytes for layer in layers for v in layer.variables.values())

everything()
start = counted()
overhead = counted() - start
start = counted()
tensors = everything()
print([counted() - start - overhead, tensors])
"""
END_OF_FILE = 16 << 10
"""Bytes at the end of an index that are read to identify a file."""


def reading(data: Path, runs: int) -> Iterator[Result]:
    """Inspect checkpoints, usual and huge, and count the bytes that are read."""
    build(data, "mobilenet", "names_100k", "objects_100k", "objects_1m")
    model = data / "mobilenet/model"
    ours = bnstat("inspect", model)
    taken = in_turn({"imports": IMPORTS, "numpy": script("import numpy"), "bnstat": ours}, 3 * runs)
    seconds = cpu(taken["bnstat"])
    yield compared("MobileNetV2, CPU", "imports", 1.05, seconds, cpu(taken["imports"]))
    yield compared("MobileNetV2, CPU", "`import numpy`", 1.3, seconds, cpu(taken["numpy"]))
    yield Result("MobileNetV2, peak memory", peak(taken["bnstat"]), "MB", 40)
    taken = in_turn({"ours": ours, "peer": script(TENSORFLOW, model)}, 3)
    yield compared("MobileNetV2", "TensorFlow", 0.1, wall(taken["ours"]), wall(taken["peer"]))
    for name, what, bound in (
        ("names_100k", "100,000 variables by name", 2.7),
        ("objects_100k", "100,000 variables by object", 2.7),
        ("objects_1m", "1,000,000 variables by object", 18),
    ):
        taken = in_turn({"imports": IMPORTS, "ours": bnstat("inspect", data / name / "model")}, 3)
        yield compared(f"{what}, CPU", "imports", bound, cpu(taken["ours"]), cpu(taken["imports"]))
    yield Result("1,000,000 variables by object, peak memory", peak(taken["ours"]), "MB", 400)
    if sys.platform == "linux":
        yield from bytes_read(data)


def bytes_read(data: Path) -> Iterator[Result]:
    """Yield what is read beside the index and the tensors, of a small and of a huge checkpoint."""
    from bnstat.formats.tensorflow.bundle import Bundle
    from bnstat.formats.tensorflow.object_graph import KEY
    from bnstat.storage.local import LocalFolder

    build(data, "sparse_10mb", "sparse_10gb")
    beside = {}
    for name in ("mobilenet", "sparse_10mb", "sparse_10gb"):
        model = data / name / "model"
        read, tensors = printed(script(READ, model))
        bundle = Bundle(LocalFolder(str(model.parent)), model.name, data=True)
        graph = bundle.entry(KEY).size if KEY in bundle.variables() else 0
        beside[name] = read - model.with_suffix(".index").stat().st_size - tensors - graph
    what = "bytes read beside the index and the batch-norm tensors, MobileNetV2"
    yield Result(what, beside["mobilenet"], "bytes", END_OF_FILE)
    more = beside["sparse_10gb"] - beside["sparse_10mb"]
    yield Result("bytes more of a checkpoint of 10 GB than of one of 10 MB", more, "bytes", 0)


SHOW = """
import sys
ENDINGS = ("gamma", "beta", "moving_mean", "moving_variance", "running_mean", "running_var")
def show(name, value):
    print(name, value.mean(), value.std(), value.min(), value.max())
"""
H5PY = """
import h5py
def visit(name, value):
    if isinstance(value, h5py.Dataset) and name.endswith(ENDINGS):
        show(name, value[()])
h5py.File(sys.argv[1]).visititems(visit)
"""
H5PY_OF_KERAS_3 = """
import h5py, json, zipfile
archive = zipfile.ZipFile(sys.argv[1])
layers = json.loads(archive.read("config.json"))["config"]["layers"]
count = sum(layer["class_name"] == "BatchNormalization" for layer in layers)
groups = h5py.File(archive.open("model.weights.h5"))["layers"]
for number in range(count):
    suffix = f"_{number}" if number else ""
    for index in range(4):
        show(number, groups[f"batch_normalization{suffix}/vars/{index}"][()])
"""
ONNX = """
import onnx
from onnx import numpy_helper
graph = onnx.load(sys.argv[1]).graph
tensors = {tensor.name: tensor for tensor in graph.initializer}
for node in graph.node:
    if node.op_type == "BatchNormalization":
        for name in node.input[1:]:
            show(name, numpy_helper.to_array(tensors[name]))
"""
SAFETENSORS = """
from safetensors import safe_open
with safe_open(sys.argv[1], "np") as tensors:
    means = [name for name in tensors.keys() if name.endswith("running_mean")]
    for norm in [name.removesuffix("running_mean") for name in means]:
        for ending in ("weight", "bias", "running_mean", "running_var"):
            show(norm, tensors.get_tensor(norm + ending))
"""
TORCH = """
import torch
tensors = torch.load(sys.argv[1])
norms = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
for norm in norms:
    for ending in ("weight", "bias", "running_mean", "running_var"):
        show(norm, tensors[norm + ending].numpy())
"""
PEERS = {
    "model.h5": ("h5py", H5PY, 1.2),
    "model.keras": ("h5py", H5PY_OF_KERAS_3, 1.2),
    "model.onnx": ("onnx", ONNX, 1.0),
    "model.safetensors": ("safetensors", SAFETENSORS, 1.0),
    "model.pth": ("torch", TORCH, 1.0),
    "saved_model": ("tensorflow", TENSORFLOW, 1.0),
}


def formats(data: Path, runs: int) -> Iterator[Result]:
    """Inspect EfficientNetB4 (96 layers) in each format, beside the format's own library."""
    build(data, "efficientnet")
    for name, (library, code, bound) in PEERS.items():
        path = data / "efficientnet" / name
        if find_spec(library) is None or not path.exists():
            print(f"{name}: left out, because {library} is not installed", file=sys.stderr)
            continue
        variables = path / "variables/variables" if library == "tensorflow" else path
        commands = {"ours": bnstat("inspect", path), "peer": script(SHOW + code, variables)}
        taken = in_turn(commands, 3 if library in ("torch", "tensorflow") else runs)
        ours, theirs = taken["ours"], taken["peer"]
        yield compared(f"{name}, CPU", library, bound, cpu(ours), cpu(theirs))
        memory = [peak(ours)], [peak(theirs)]
        yield compared(f"{name}, peak memory", library, bound, *memory, "MB")


ORJSON = """
import sys
from pathlib import Path
import numpy, orjson
arrays = {path.stem: numpy.load(path) for path in sorted(Path(sys.argv[1]).glob("*.npy"))}
Path(sys.argv[2]).write_bytes(orjson.dumps(arrays, option=orjson.OPT_SERIALIZE_NUMPY))
"""


def export(data: Path, runs: int) -> Iterator[Result]:
    """Export 10,000,000 values from a checkpoint; the peer writes the same from `.npy` files."""
    build(data, "values_10m")
    source = data / "values_10m"
    with tempfile.TemporaryDirectory() as folder:
        commands = {"peer": script(ORJSON, source, Path(folder) / "peer.json")}
        for ending in ("json", "csv"):
            commands[ending] = bnstat("export", source, "-o", Path(folder) / f"ours.{ending}")
        taken = in_turn(commands, min(runs, 5))
    for ending, bound in (("json", 2), ("csv", 4)):
        form, ours = ending.upper(), taken[ending]
        yield compared(f"{form}, CPU", "`orjson.dumps`", bound, cpu(ours), cpu(taken["peer"]))
        # One of the four arrays has 10 MB.
        yield Result(f"{form}, peak memory", peak(ours), "MB", 120 + 10)


HISTORY = """
import json, sys
from time import process_time
import bnstat
from bnstat.model import Summary

def alone(folder, count):
    start = process_time()
    for step in range(0, count, 5):
        for layer in bnstat.load(f"{folder}/model-{step * 100}"):
            for variable in layer.variables.values():
                Summary.of(variable.read())
    return (process_time() - start) / (count // 5)

def together(folder, count):
    start = process_time()
    run = bnstat.history(bnstat.load_all(folder))
    assert len(run.checkpoints) == count
    return (process_time() - start) / count

folder, count = sys.argv[1], 200
print(json.dumps([(together(folder, count), alone(folder, count)) for _ in range(5)]))
"""
WATCH = """
import json, tempfile
from pathlib import Path
from time import perf_counter
import keras
import numpy as np
from bnstat.keras import Watch

class Timed(Watch):
    def on_epoch_end(self, epoch, logs=None):
        start = perf_counter()
        super().on_epoch_end(epoch, logs)
        ends.append(perf_counter())
        calls.append(ends[-1] - start)

calls, ends = [], []
model = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10)
model.compile("sgd", "sparse_categorical_crossentropy")
x = np.random.default_rng(0).normal(size=(1920, 96, 96, 3)).astype("f4")
with tempfile.TemporaryDirectory() as folder:
    watch = Timed(tensorboard=folder, history=Path(folder) / "bn.json")
    model.fit(x, np.arange(1920) % 10, batch_size=32, epochs=4, verbose=0, callbacks=[watch])
print(json.dumps([calls[1:], np.diff(ends).tolist()]))
"""


def training(data: Path, runs: int) -> Iterator[Result]:
    """Measure `history` over 200 checkpoints, and the Keras callback `Watch`."""
    del runs
    build(data, "history_200")
    folder = data / "history_200"
    pairs = printed(script(HISTORY, folder))
    together, alone = ([1000 * each for each in seconds] for seconds in zip(*pairs, strict=True))
    what, peer = "a checkpoint in a history of 200, CPU", "one that is loaded and summarized alone"
    yield compared(what, peer, 1.0, together, alone, "ms")
    taken = in_turn({"ours": bnstat("history", folder, "--json", "-o", "/dev/null")}, 3)
    yield Result("history of 200 checkpoints, peak memory", peak(taken["ours"]), "MB", 80)
    # The first call imports what the rules need.
    calls, epochs = printed(script(WATCH))
    what = "Watch after an epoch of 60 batches of MobileNetV2"
    yield compared(what, "the epoch", 0.01, calls, epochs)


def applying(data: Path, runs: int) -> Iterator[Result]:
    """Copy into a folder that is emptied before each command.

    A copy by bnstat is on the disk when it gets its name, and so is what `sync` waits for.
    """
    build(data, "kernels_1gb")
    folder = data / "kernels_1gb"
    values, copies = folder / "values.npz", folder / "copies"
    run(bnstat("export", folder / "model", "-o", values))
    files = ("model.data-00000-of-00001", "model.index")
    plain = " && ".join(f"cp {shlex.quote(str(folder / file))} ." for file in files)
    commands = {
        "peer": f"{plain} && sync {' '.join(files)}",
        "ours": f"exec {shlex.join(bnstat('apply', folder / 'model', values, '-o', 'model'))}",
    }

    def empty() -> None:
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()

    inside = f"cd {shlex.quote(str(copies))} && "
    shells = {label: ("sh", "-c", inside + command) for label, command in commands.items()}
    taken = in_turn(shells, min(runs, 5), empty)
    shutil.rmtree(copies)
    ours, theirs = taken["ours"], taken["peer"]
    yield compared("time until it is on the disk", "`cp; sync`", 1.2, wall(ours), wall(theirs))
    yield Result("peak memory", peak(ours), "MB", 80)


MODELS = 3000


def scanning(data: Path, runs: int) -> Iterator[Result]:
    """Scan a store of thousands of models: in two processes, again, and on Dask."""
    store, state = linked(data), data / "state.db"
    kept, cluster = ("--state", state), ("--engine", "dask://local")
    ways = {"two processes": (), "first": kept, "again": kept, "dask": cluster}
    taken: dict[str, list[Run]] = {way: [] for way in ways}
    imports, listed = [], []
    for _ in range(min(runs, 3)):
        state.unlink(missing_ok=True)
        imports.append(run(IMPORTS))
        for way, options in ways.items():
            cost, lines = scan(store, *options)
            taken[way].append(cost)
            listed.append(lines)
    seconds = {way: wall(scans) for way, scans in taken.items()}
    per_model = [1000 * each / len(listed[0]) for each in seconds["two processes"]]
    milliseconds = [1000 * each for each in wall(imports)]
    yield compared("time per model", "imports", 0.04, per_model, milliseconds, "ms")
    yield compared("a second scan with --state", "first", 0.1, seconds["again"], seconds["first"])
    yield compared("on Dask", "two processes", 1.25, seconds["dask"], seconds["two processes"])
    most = max(one.peak for way in taken.values() for one in way)
    yield Result("peak memory", most, "MB", 150)
    yield Result("scans with other lines", sum(each != listed[0] for each in listed), "", 0)


def linked(data: Path) -> Path:
    """Return a store with the models that ship with the tests, and hard links to them."""
    store = data / f"store_{MODELS}"
    if store.exists():
        return store
    unfinished = data / f"{store.name}.unfinished"
    for path in (ROOT / "tests/data").iterdir():
        if path.is_dir():
            shutil.copytree(path, unfinished / "0" / path.name)
    _, lines = scan(unfinished / "0")
    for number in range(1, -(-MODELS // len(lines))):
        shutil.copytree(unfinished / "0", unfinished / str(number), copy_function=os.link)
    unfinished.rename(store)
    return store


def scan(store: Path, *options: object) -> tuple[Run, list[str]]:
    """Scan with two jobs, and return the cost and the sorted lines."""
    lines = store.parent / "lines.jsonl"
    cost = run(bnstat("scan", store, "--jobs", 2, "--json", "-q", "-o", lines, *options))
    return cost, sorted(lines.read_text().splitlines())


MOVE = """
async (move) => {
  const next = () => new Promise(requestAnimationFrame);
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown",
    {key, bubbles: true}));
  const scroll = () => { document.getElementById("table").scrollTop += 500; };
  const times = [];
  await next();
  for (let frame = 0; frame < 90; frame++) {
    if (move === "scroll") scroll();
    else if (move) press(move);
    times.push(await next());
  }
  return times.slice(1).map((time, place) => time - times[place]);
}
"""


def in_browser(path: Path, move: str, rounds: int) -> tuple[list[float], ...]:
    """Milliseconds until a page is ready, between frames at rest, and between frames in motion."""
    from playwright.sync_api import sync_playwright

    from tests.output.page.conftest import ARGUMENTS, chromium

    ready, still, frames = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        for _ in range(rounds):
            page: Any = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(path.resolve().as_uri())
            page.wait_for_selector("html[data-ready=true]", state="attached")
            ready.append(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))
            still += page.evaluate(MOVE, "")
            frames += page.evaluate(MOVE, move)
            page.close()
        browser.close()
    return ready, still, frames


def report(data: Path, runs: int) -> Iterator[Result]:
    """Make the page of a report, and use it in headless Chromium."""
    build(data, "efficientnet", "layers_10k")
    with tempfile.TemporaryDirectory() as temporary:
        page, large = Path(temporary) / "page.html", Path(temporary) / "large.html"
        usual, huge = data / "efficientnet/model.keras", data / "layers_10k/model"
        commands = {"report": bnstat("report", usual, "-o", page), "imports": IMPORTS}
        taken = in_turn({**commands, "large": bnstat("report", huge, "-o", large)}, min(runs, 5))
        imports = wall(taken["imports"])
        yield compared("making the page", "imports", 6, wall(taken["report"]), imports)
        yield Result("size of the page", page.stat().st_size / 1e6, "MB", 1.5)
        for what, path, move, bound in (
            ("EfficientNetB4", page, "ArrowDown", 6),
            ("10,000 layers", large, "scroll", 30),
        ):
            ready, still, frames = in_browser(path, move, len(imports))
            seconds = [each / 1000 for each in ready]
            yield compared(f"{what}: until it can be used", "imports", bound, seconds, imports)
            yield compared(f"{what}: a frame while it moves", "at rest", 1.01, frames, still, "ms")
