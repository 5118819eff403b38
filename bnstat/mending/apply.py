"""Write a copy of a model in its own format, with new values for its batch-norm layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from numpy.typing import ArrayLike

from bnstat.mending.applied import Applied
from bnstat.model import ROLES, Model

Values = Mapping[str, Mapping[str, ArrayLike]]
"""Layer -> role -> array."""


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
    in_place: bool = False,
    force: bool = False,
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
            either: bnstat's own JSON, CSV or NPZ, or any model that `load` reads.
        output: what the copy is called: a folder where `path` is one, a checkpoint's prefix
            where it is one or one of its files, else a file.
        roles: only these roles are written.
        layers: only layers of the model whose name matches one of these globs; all if empty.
        checkpoint, step, patterns, include_shadows: as for `load`, of the model at `path`.
        in_place: give the copy the original's name instead of `output`, in its place.
        force: replace what is already called `output`.

    Raises:
        NotFoundError: a layer or role that has values is not in the model.
        DamagedError: values or model are damaged.
        UnsupportedError: a value cannot be held by the stored dtype, or the model cannot be
            written.
        BnstatError: `output` is there already, or cannot be written.
    """
    raise NotImplementedError
