"""Write a copy of a model in its own format, with new values for its batch-norm layers."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath

from bnstat.errors import BnstatError
from bnstat.mending.applied import Applied
from bnstat.mending.draft import Draft
from bnstat.mending.fitting import fit
from bnstat.mending.interrupts import clean_ending
from bnstat.mending.layout import planned
from bnstat.mending.pairing import assignments
from bnstat.mending.twins import with_twins
from bnstat.mending.values import Values, taken
from bnstat.mending.verifying import Looking, verify
from bnstat.mending.writers import write
from bnstat.model import ROLES, Model


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
    if in_place == (output is not None):
        raise BnstatError("output", "give either a copy's name or in_place")
    looking = Looking(tuple(patterns), include_shadows, config)
    model = looking.open(fspath(path), checkpoint, step).model
    plan = planned(model.source, output)
    given = taken(values)
    fitted, changes = fit(assignments(model, given, roles, layers))
    arrays = {change.key: fitted[change.key] for change in changes if change.moved}
    with clean_ending(), Draft(plan) as draft:
        copy = looking.open(draft.model)
        write(copy.contents, with_twins(copy.contents, arrays))
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
