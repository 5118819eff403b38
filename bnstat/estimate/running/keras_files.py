"""Make a `Program` of a Keras file: check the file, build the model in safe mode, and trace it.

Keras resolves names in a configuration to Python objects: modules, classes, functions, and symbols
of TensorFlow's API. The safe mode of Keras does not restrict all names: tf-keras imports any
module, and calls any function of TensorFlow (even `tf.io.gfile.remove`) with constants from the
file. So the whole configuration is checked before Keras builds any object.

Sources: keras/src/saving/serialization_lib.py; tf_keras/src/saving/serialization_lib.py,
tf_keras/src/layers/core/tf_op_layer.py, tf_keras/src/engine/base_layer.py.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from bnstat.compare.alignment import align
from bnstat.errors import BnstatError, DamagedError, UnsupportedError, first_line
from bnstat.estimate.data import Settings
from bnstat.estimate.data.batches import import_user_module
from bnstat.estimate.running.allowed_ops import ALLOWED
from bnstat.estimate.running.flat_graph import Program
from bnstat.estimate.running.traced import traced
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.live import live_model
from bnstat.mending.layout import footprint
from bnstat.model import Model, Source
from bnstat.storage.archive import open_archive
from bnstat.storage.files import Folder
from bnstat.storage.local import LocalFile, LocalFolder

_KERAS = re.compile(
    r"(tf_)?keras(\.(api|src|_tf_keras|keras|v2|v1|experimental|__internal__))*"
    r"(\.(activations|constraints|dtype_policies|engine|initializers|layers|legacy|losses|metrics"
    r"|mixed_precision|models|ops|optimizers|quantizers|random|regularizers|trainers)(\.\w+)*)?"
)
"""Keras modules that define parts of models; other modules can access files and settings."""

_RUNS_CODE = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})

_SYMBOLS = re.compile(
    r"(compat\.v1\.)?((__operators__|bitwise|dtypes|image|linalg|math|nn|quantization|ragged|random|sets|signal"
    r"|sparse|strings)(\.\w+)+"
    r"|abs|add|add_n|arg(max|min|sort)|batch_to_space|bitcast|boolean_mask|broadcast_to|cast"
    r"|clip_by_\w+|complex|concat|constant|convert_to_tensor|cos|cosh|cumsum|divide|einsum"
    r"|ensure_shape|equal|exp|expand_dims|eye|fill|floor|gather(_nd)?|greater(_equal)?|identity"
    r"|less(_equal)?|linspace|logical_\w+|matmul|maximum|meshgrid|minimum|multiply|negative|norm"
    r"|not_equal|one_hot|ones(_like)?|pad|pow|range|rank|realdiv|reduce_\w+|repeat|reshape"
    r"|reverse(_sequence)?|roll|round|scatter_nd|searchsorted|shape(_n)?|sigmoid|sign|sin|sinh"
    r"|size|slice|sort|space_to_batch(_nd)?|split|sqrt|square|squeeze|stack|stop_gradient"
    r"|strided_slice|subtract|tan|tanh|tensor_scatter_nd_\w+|tensordot|tile|transpose|truediv"
    r"|unique|unstack|where|zeros(_like)?)"
)
"""TensorFlow functions that only add ops to a graph; the graph's ops are checked later."""

_TRUST = "--trust allows that; use it only for files from people whom you trust"

_TENSORS = frozenset({"RaggedTensor", "SparseTensor", "sparse.SparseTensor"})


def keras_file(path: str, model: Model, settings: Settings) -> Program:
    """Return a `Program` for the model in a `.keras` file, an unzipped `.keras`, or an `.h5`."""
    built = _built(footprint(model.source).path, model.source, settings)
    live = live_model(built)
    variables = {
        layer.old.variables[role].key: live.variables[layer.new.variables[role].key]
        for layer in align(model, live.model).pairs
        for role in layer.old.variables
        if role in layer.new.variables
    }
    return traced(built, path, variables)


def _built(path: str, source: Source, settings: Settings) -> Any:
    for name in settings.imports:
        import_user_module(name, name)
    keras = _library(source)
    if os.path.isdir(path) and keras.__name__ != "keras":
        what = f"is an unzipped .keras, which {keras.__name__} cannot load"
        raise UnsupportedError(path, what, "zip the folder's files into one .keras")
    with _with_usual_ending(path, source.format) as file:
        if not settings.trust:
            _refuse_other_files(file, path)
            refuse_unsafe(_configuration(file, path), path, settings.imports)
        try:
            return keras.models.load_model(file, compile=False, safe_mode=not settings.trust)
        except Exception as error:  # whatever the layers' own code raises
            hint = "save the model with model.export, and pass that SavedModel"
            if re.search(r"[Uu]nknown|locate class|custom", str(error)):
                hint = "pass --import MODULE with the Python module that defines the custom classes"
            if re.search(r"safe_mode|unsafe", str(error), re.IGNORECASE):
                hint = "pass --trust to let Keras run the code in the file"
            reason = f"Keras cannot build it: {first_line(error)}"
            raise UnsupportedError(path, reason, hint) from None


def _library(source: Source) -> Any:
    """Import `tf_keras` for Keras 1 or 2, else `keras`; if missing, import the other library."""
    version = (source.writer or "").rpartition(" ")[2]
    names = ["keras", "tf_keras"] if version[:1] not in ("1", "2") else ["tf_keras", "keras"]
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    raise BnstatError(" or ".join(names), "is needed to build the model", "install it")


@contextmanager
def _with_usual_ending(path: str, kind: str) -> Iterator[str]:
    """Yield `path`, or a temporary link or copy that ends as Keras expects for `kind`."""
    ending = ".keras" if kind == "keras-archive" else ".h5"
    if os.path.isdir(path) or path.endswith(ending):
        yield path
        return
    with TemporaryDirectory(prefix="bnstat-") as folder:
        file = os.path.join(folder, f"model{ending}")
        try:
            os.symlink(os.path.abspath(path), file)
        except OSError:  # Windows allows it only to administrators
            copyfile(path, file)
        yield file


def _refuse_other_files(path: str, where: str) -> None:
    """Raise if an HDF5 file has external links, external storage or virtual datasets."""
    folder: Folder | None = LocalFolder(path) if os.path.isdir(path) else None
    if folder is None and not is_hdf5(LocalFile(path)):
        folder = open_archive(LocalFile(path))
    files = [LocalFile(path)] if folder is None else map(folder.file, folder.names())
    for file in files:
        if file is not None and is_hdf5(file):
            for name in sorted(Hdf5(file).outside)[:1]:
                what = f"to build it, Keras would read {name!r} from another file"
                raise UnsupportedError(where, what, _TRUST)


def _configuration(file: str, where: str) -> Any:
    try:
        if os.path.isdir(file):
            with open(os.path.join(file, "config.json"), "rb") as stream:
                return json.load(stream)
        if file.endswith(".keras"):
            with ZipFile(file) as archive, archive.open("config.json") as member:
                return json.load(member)
        import h5py

        with h5py.File(file, "r") as store:
            return json.loads(store.attrs["model_config"])
    except (OSError, LookupError, RecursionError, TypeError, ValueError, BadZipFile) as error:
        reason = f"its configuration cannot be read: {first_line(error)}"
        raise DamagedError(where, reason) from None


def refuse_unsafe(configuration: Any, path: str, imports: Sequence[str]) -> None:
    """Raise if a configuration uses modules outside Keras and `imports`, or is unsafe to build."""
    for described in _objects(configuration):
        module = _text(described.get("module"))
        if module and not _is_known(module, described, imports):
            raise UnsupportedError(
                path,
                f"Keras cannot build it without {module}.{_name(described)}, which is not one of "
                "Keras's own models, layers and functions",
                f"--import MODULE allows a module that you know, such as --import {module}; "
                "--trust allows all",
            )
        if danger := _danger(described):
            raise UnsupportedError(path, f"to build it, Keras would {danger}", _TRUST)


def _objects(configuration: Any) -> Iterator[dict[str, Any]]:
    waiting = [configuration]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_known(module: str, described: dict[str, Any], imports: Sequence[str]) -> bool:
    if any(f"{module}.".startswith(f"{name}.") for name in imports):
        return True
    if imports:  # an imported module may have registered the object with Keras
        registered = _text(described.get("registered_name"))
        libraries = [sys.modules[name] for name in ("keras", "tf_keras") if name in sys.modules]
        if any(each.saving.get_registered_object(registered) is not None for each in libraries):
            return True
    name = _name(described)
    if module == "builtins":
        return not hasattr(builtins, name.partition(".")[0])
    return bool(_KERAS.fullmatch(module)) and "." not in name


def _name(described: dict[str, Any]) -> str:
    name = _text(described.get("class_name"))
    return _text(described.get("config")) if name == "function" else name


def _danger(described: dict[str, Any]) -> str:
    """Return the dangerous action that building an object would cause, or an empty string."""
    kind = _text(described.get("class_name")).rpartition(">")[2]
    config = described["config"] if isinstance(described.get("config"), dict) else {}
    if kind in _RUNS_CODE:
        return f"run code in the file ({kind})"
    if kind == "TFSMLayer":
        return f"read the file {config.get('filepath')!r} ({kind})"
    for holder in (described, config):
        if isinstance(holder.get("vocabulary"), str):
            return f"read the file {holder['vocabulary']!r} ({kind or 'vocabulary'})"
    symbol: object = None
    if kind == "TFOpLambda":
        symbol = config.get("function")
    elif kind == "ClassMethod" and _text(config.get("cls_symbol")) not in _TENSORS:
        symbol = config.get("cls_symbol")
    elif kind == "TensorFlowOpLayer":
        node = config.get("node_def")
        op = node.get("op") if isinstance(node, dict) else node
        return "" if _text(op) in ALLOWED else f"run the op {op!r} ({kind})"
    if symbol is None or _SYMBOLS.fullmatch(_text(symbol)):
        return ""
    return f"call tf.{symbol} ({kind})"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
