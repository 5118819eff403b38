"""Write a copy of a model in its own format, with new values for its batch-norm layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import NamedTuple

from bnstat.discovery import discover
from bnstat.errors import BnstatError, ChangedError
from bnstat.exchange.registry import Values, taken
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.loading import configurer
from bnstat.mending.copying import clean_ending
from bnstat.mending.draft import Draft
from bnstat.mending.layout import planned
from bnstat.mending.pairing import Applied, assignments, different, fit, with_twins
from bnstat.mending.writers import write_arrays
from bnstat.model import ROLES, Array, BatchNorm, Model, Source
from bnstat.storage.address import refuse_url


class Opened(NamedTuple):
    """A model, and the file's contents that it was found in."""

    contents: Contents
    model: Model


class Looking(NamedTuple):
    """How layers are looked for: the options of `load` that say so."""

    patterns: Sequence[tuple[str, str]] = ()
    include_shadows: bool = False
    config: str | PathLike[str] | None = None

    def open(self, path: str, checkpoint: str | None = None, step: int | None = None) -> Opened:
        """Open the model at a path, with bnstat's own reader, and read its arrays.

        Raises:
            BnstatError: as `bnstat.load`.
        """
        refuse_url(path, "a model is mended where it lies on disk")
        found = locate(path).choose(path, checkpoint, step)
        contents = found.open(Source(path, "", found.name, found.step), Reading())
        if self.config is not None:
            contents = configurer(self.config)(contents)
        model = discover(contents, patterns=self.patterns, include_shadows=self.include_shadows)
        model.read()
        return Opened(contents, model)


def verify(copy: Model, original: Model, arrays: Mapping[str, Array]) -> None:
    """Make sure that a copy has new arrays where it should, and the old ones elsewhere.

    Args:
        copy: the finished copy as it is read.
        original: the model that was copied.
        arrays: key -> new array.

    Raises:
        ChangedError: a layer is another than it should be.
    """
    layers = {layer.name: layer for layer in (*copy.layers, *copy.incomplete)}
    for layer in (*original.layers, *original.incomplete):
        copied = _arrays_of(layers.pop(layer.name, None))
        for key, stored in _arrays_of(layer).items():
            if key not in copied or _differ(arrays.get(key, stored), copied[key]):
                raise _changed(original, layer.name)
    if layers:
        raise _changed(original, next(iter(layers)))


def _arrays_of(layer: BatchNorm | None) -> dict[str, Array]:
    """Return the arrays of a layer's roles and undecided variables by the keys of these."""
    if layer is None:
        return {}
    held = ((each.key, layer.array(role)) for role, each in layer.variables.items())
    roles = {key: array for key, array in held if array is not None}
    return roles | {each.key: each.read() for each in layer.undecided}


def _differ(expected: Array, array: Array) -> bool:
    if (expected.shape, expected.dtype) != (array.shape, array.dtype):
        return True
    return bool(different(expected, array).any())


def _changed(original: Model, name: str) -> BnstatError:
    return ChangedError(
        original.source.path,
        f"the copy's {name} is not what it should be, so it was not kept",
        "did the model change meanwhile? Try again",
    )


def apply(
    path: str | PathLike[str],
    values: Values | Model | str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    roles: Sequence[str] = ROLES,
    layers: Sequence[str] = (),
    checkpoint: str | None = None,
    step: int | None = None,
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    config: str | PathLike[str] | None = None,
    in_place: bool = False,
) -> Applied:
    """Write a copy of a model with new values for its batch-norm layers.

    The copy differs from its original in the bytes of these values and the checksums over them,
    and in nothing else. It is read back and compared before it gets its name; where anything
    goes wrong, nothing is left behind and the original is untouched.

    Args:
        path: the model, as for `load`; not inside an archive.
        values: layer's name -> role -> array of the stored shape. An array of another dtype is
            converted where that is exact; round it to the stored dtype before where it is not.
            Or another model, whose layers are paired as `diff` pairs them; or the path of
            either: a file that bnstat exported, or any model that `load` reads.
        output: what the copy is called: a folder where `path` is one, a checkpoint's prefix
            where it is one or one of its files, else a file.
        roles: only these roles are written.
        layers: only layers of the model whose name matches one of these globs; all if empty.
        checkpoint: as for `load`, of the model at `path`; so are the next three.
        step: the step of one of a folder's checkpoints.
        patterns: (role, regular expression) pairs of a naming scheme of your own.
        include_shadows: also the exponential-moving-average copies of layers.
        config: as for `load`, of the model at `path`.
        in_place: give the copy the original's name instead of `output`, in its place.

    Returns:
        What was written, and where.

    Raises:
        NotFoundError: a layer or role that has values is not in the model.
        DamagedError: values or model are damaged.
        UnsupportedError: a value cannot be held by the stored dtype, or the model cannot be
            written.
        ChangedError: the model was replaced while it was copied.
        BnstatError: `output` is there already, or cannot be written.
    """
    looking = Looking(tuple(patterns), include_shadows, config)
    model = looking.open(fspath(path), checkpoint, step).model
    plan = planned(model.source, output, in_place)
    given = taken(values)
    fitted, changes = fit(assignments(model, given, roles, layers))
    arrays = {change.key: fitted[change.key] for change in changes if change.moved}
    with clean_ending(), Draft(plan) as draft:
        copy = looking.open(draft.model)
        write_arrays(copy.contents, with_twins(copy.contents, arrays))
        verify(looking.open(draft.model).model, model, arrays)
        draft.finish()
    touched = {change.layer for change in changes}
    return Applied(
        model.source,
        plan.output,
        fspath(values) if isinstance(values, (str, PathLike)) else None,
        changes,
        [layer.name for layer in model if layer.name not in touched],
    )
