"""Keras's own files as programs: built by Keras, in safe mode, and traced."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any, Final

from bnstat.compare.alignment import align
from bnstat.errors import BnstatError, NotFoundError, UnsupportedError, first_line
from bnstat.live import live_model
from bnstat.mending.estimating.running.program import Program
from bnstat.mending.estimating.running.programs.traced import traced
from bnstat.mending.footprint import footprint
from bnstat.model import Model, Source

_ENDINGS: Final = {"keras-archive": (".keras",), "keras-h5": (".h5", ".hdf5")}
"""Format -> the endings of file names that Keras loads as that format."""


def keras_file(path: str, model: Model, imports: Iterable[str], trust: bool) -> Program:
    """The program of the model in a `.keras` or an `.h5`.

    Args:
        path: the file, or its folder.
        model: its layers as the file says them.
        imports: modules to import first, for custom classes.
        trust: whether Keras may run code that the file holds.

    Raises:
        UnsupportedError: Keras cannot build it.
    """
    file = footprint(model.source).path
    built = _built(file, model.source, imports, trust)
    live = live_model(built)
    pairs = {
        layer.old.variables[role].key: live.variables[layer.new.variables[role].key]
        for layer in align(model, live.model).pairs
        for role in layer.old.variables
        if role in layer.new.variables
    }
    keys = {id(getattr(each, "_value", each)): key for key, each in pairs.items()}
    return traced(built, path, keys)


def _built(path: str, source: Source, imports: Iterable[str], trust: bool) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        for name in imports:
            import_module(name)
    except ImportError as error:
        raise NotFoundError(name, f"cannot be imported: {error}") from None
    finally:
        sys.path.remove(os.getcwd())
    keras = _library(source)
    options = {"safe_mode": not trust} if source.format == "keras-archive" else {}
    try:
        with _named(path, _ENDINGS[source.format]) as named:
            return keras.models.load_model(named, compile=False, **options)
    except Exception as error:  # whatever the layers' own code raises
        hint = "save it by model.export, and take that SavedModel"
        if re.search(r"[Uu]nknown|locate class|custom", str(error)):
            hint = "--import MODULE names the Python module that defines its custom classes"
        if "safe_mode" in str(error) or "unsafe" in str(error).lower():
            hint = "--trust lets it run the code that it holds"
        raise UnsupportedError(path, f"Keras cannot build it: {first_line(error)}", hint) from None


@contextmanager
def _named(path: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Give a path of the same file that has one of the endings: Keras goes by the name."""
    if path.endswith(endings) or os.path.isdir(path):
        yield path
        return
    with TemporaryDirectory(prefix="bnstat_") as folder:
        named = os.path.join(folder, f"model{endings[0]}")
        try:
            os.symlink(os.path.abspath(path), named)
        except OSError:  # not allowed on this system
            shutil.copyfile(path, named)
        yield named


def _library(source: Source) -> Any:
    """The Keras that wrote a file: 2 lives on as tf-keras."""
    version = (source.writer or "").rpartition(" ")[2]
    names = ["keras", "tf_keras"] if version[:1] not in ("1", "2") else ["tf_keras", "keras"]
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise BnstatError(" or ".join(names), "is needed to build the model", "install it")
