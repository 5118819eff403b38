"""Write a copy of a model in its own format, with new values for its batch-norm layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath

import numpy as np

from bnstat.errors import ChangedError
from bnstat.exchange.registry import Values, values_of
from bnstat.formats.locate import locate
from bnstat.loading import Options
from bnstat.mending.draft import drafted
from bnstat.mending.layout import planned
from bnstat.mending.pairing import Applied, fit, with_twins
from bnstat.mending.writers import write_arrays
from bnstat.model import ROLES, Array, Model, is_same
from bnstat.signals import exiting_on_signals
from bnstat.storage.access import Access, refuse_url


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

    Only these values and their checksums change; every other byte is identical. The copy is read
    back and compared before it gets its final name. If anything fails, nothing is written and the
    original is unchanged.

    Args:
        path: the model, as for `load`; not inside an archive.
        values: layer name -> role -> array of the stored shape. An array of another dtype must be
            exactly representable in the stored dtype. Alternatively, another model, whose layers
            are paired as in `diff`; or the path of a file that bnstat exported, or of a model that
            `load` reads.
        output: the path of the copy: a folder, a checkpoint prefix or a file, like `path`.
        roles: write only these roles.
        layers: write only layers of the model whose name matches one of these globs; default:
            all.
        checkpoint: as for `load`, of the model at `path`.
        step: as for `load`, of the model at `path`.
        patterns: as for `load`, of the model at `path`.
        include_shadows: as for `load`, of the model at `path`.
        config: as for `load`, of the model at `path`.
        in_place: replace the original; do not pass `output`.

    Returns:
        What was written, and where.

    Raises:
        NotFoundError: the values are for a layer or role that the model does not have.
        DamagedError: the values or the model are damaged.
        UnsupportedError: the stored dtype cannot represent a value, or bnstat does not write
            the model's format.
        ChangedError: the model was replaced while it was copied.
        BnstatError: `output` exists, or cannot be written.
    """
    path = fspath(path)
    refuse_url(path, "bnstat writes local models only")
    options = Options("native", tuple(patterns), include_shadows, eager=True, config=config)
    _, model = options.open(path, locate(path).choose(path, checkpoint, step), Access())
    plan = planned(model.source, output, in_place)
    fitted, changes = fit(model, values_of(values), roles, layers)
    arrays = {change.key: fitted[change.key] for change in changes if change.moved}
    with exiting_on_signals(), drafted(plan) as draft:
        contents, _ = options.open(draft, locate(draft).default, Access())
        write_arrays(contents, with_twins(contents, arrays))
        _, copy = options.open(draft, locate(draft).default, Access())
        verify(copy, model, arrays)
    touched = {change.layer for change in changes}
    untouched = [layer.name for layer in model if layer.name not in touched]
    given = fspath(values) if isinstance(values, (str, PathLike)) else None
    return Applied(model.source, plan.output, given, changes, untouched)


def verify(copy: Model, original: Model, arrays: Mapping[str, Array]) -> None:
    """Raise a `ChangedError` unless a copy is the original with the new `arrays` (by key)."""
    copied = _arrays_of(copy)
    expected = {place: arrays.get(place[1], array) for place, array in _arrays_of(original).items()}
    for place in expected | copied:
        is_known = place in expected and place in copied
        if not is_known or not is_same(expected[place], copied[place]):
            what = f"the copy was deleted, because its layer {place[0]} has unexpected values"
            hint = "if the model was overwritten meanwhile, try again"
            raise ChangedError(original.source.path, what, hint)


def _arrays_of(model: Model) -> dict[tuple[str, str], Array]:
    """Return (layer name, key) -> array for all roles and undecided variables."""
    arrays: dict[tuple[str, str], Array] = {}
    for layer in (*model.layers, *model.incomplete):
        for role, variable in layer.variables.items():
            arrays[layer.name, variable.key] = np.asarray(layer.array(role))
        arrays |= {(layer.name, variable.key): variable.read() for variable in layer.undecided}
    return arrays
