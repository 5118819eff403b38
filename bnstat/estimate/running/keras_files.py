"""Keras's own files as programs: checked, built by Keras in safe mode, and traced."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from bnstat.compare.alignment import align
from bnstat.errors import BnstatError, NotFoundError, UnsupportedError, first_line
from bnstat.estimate.running.flat_graph import Program
from bnstat.estimate.running.keras_config import read_configuration, refuse_unsafe
from bnstat.estimate.running.traced import traced
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.live import live_model
from bnstat.mending.layout import footprint
from bnstat.model import Model, Source
from bnstat.storage.archive import open_archive
from bnstat.storage.files import File, Folder
from bnstat.storage.local import LocalFile, LocalFolder


def keras_file(path: str, model: Model, imports: Sequence[str], trust: bool) -> Program:
    """The program of the model in a `.keras` or an `.h5`.

    Args:
        path: the file, or its folder.
        model: its layers as the file says them.
        imports: modules to import first, for custom classes.
        trust: let Keras run code and read files that the file names.

    Raises:
        UnsupportedError: Keras cannot build it, or would have to trust it.
        BnstatError: a module of the user's cannot be imported.
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


def _built(path: str, source: Source, imports: Sequence[str], trust: bool) -> Any:
    _import(imports)
    keras = _library(source)
    if os.path.isdir(path) and keras.__name__ != "keras":
        raise UnsupportedError(
            path,
            f"is a folder, which {keras.__name__} takes for a SavedModel",
            "zip its files into a .keras",
        )
    with _under_its_ending(path, source.format) as file:
        if not trust:
            _refuse_outside(file, path)
            refuse_unsafe(read_configuration(file, path), path, imports)
        try:
            return keras.models.load_model(file, compile=False, safe_mode=not trust)
        except Exception as error:  # whatever the layers' own code raises
            hint = "save it by model.export, and take that SavedModel"
            if re.search(r"[Uu]nknown|locate class|custom", str(error)):
                hint = "--import MODULE names the Python module that defines its custom classes"
            if "safe_mode" in str(error) or "unsafe" in str(error).lower():
                hint = "--trust lets it run the code that it holds"
            reason = f"Keras cannot build it: {first_line(error)}"
            raise UnsupportedError(path, reason, hint) from None


def _refuse_outside(path: str, where: str) -> None:
    """Raise if HDF5 would read other files for the sake of this one.

    Args:
        path: a `.keras` file or folder, or an `.h5`.
        where: for messages.

    Raises:
        UnsupportedError: it has external links, external storage or virtual datasets.
        DamagedError: it cannot be read.
    """
    for file in _weights_files(path):
        for name in sorted(Hdf5(file).outside)[:1]:
            raise UnsupportedError(
                where,
                f"to build it, Keras would read {name!r} from another file",
                "--trust allows that; use it only for files from people whom you trust",
            )


def _weights_files(path: str) -> list[File]:
    """Return the HDF5 files in a `.keras` file or folder, or the one that a path is."""
    folder: Folder | None = LocalFolder(path) if os.path.isdir(path) else None
    if folder is None:
        file = LocalFile(path)
        if is_hdf5(file):
            return [file]
        folder = open_archive(file)
    files = [folder.file(name) for name in folder.names()] if folder is not None else []
    return [file for file in files if file is not None and is_hdf5(file)]


def _import(names: Sequence[str]) -> None:
    """Import the user's modules, which are looked for in the working directory too.

    Raises:
        NotFoundError: there is no such module.
        BnstatError: the module's own code fails.
    """
    sys.path.insert(0, os.getcwd())
    try:
        for name in names:
            import_module(name)
    except ImportError as error:
        raise NotFoundError(name, f"cannot be imported: {first_line(error)}") from None
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BnstatError(name, f"cannot be imported: {reason}") from None
    finally:
        sys.path.remove(os.getcwd())


@contextmanager
def _under_its_ending(path: str, kind: str) -> Iterator[str]:
    """Yield a name of a file that has the ending by which Keras chooses how to load it."""
    ending = ".keras" if kind == "keras-archive" else ".h5"
    if os.path.isdir(path) or path.endswith(ending):
        yield path
        return
    with TemporaryDirectory(prefix="bnstat-") as folder:
        file = os.path.join(folder, f"model{ending}")
        try:
            os.symlink(os.path.abspath(path), file)
        except OSError:  # Windows allows it to administrators alone
            copyfile(path, file)
        yield file


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
