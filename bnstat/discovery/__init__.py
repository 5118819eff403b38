"""From what a file holds to its batch-norm layers.

Four kinds of evidence are asked, the strongest first: layer configurations, the object graph,
computation graphs, names. Each gives sightings; those that share a variable are one layer, whose
name and roles the strongest evidence tells and whose gaps the others fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnstat.discovery.explanations import what_decides
from bnstat.discovery.merge import Merged, Sighting, in_order, is_complete, merge, unique_names
from bnstat.discovery.names import (
    NAMED_FOR_ITS_ROLE,
    Names,
    by_patterns,
    from_names,
    without_statistics,
)
from bnstat.discovery.objects import from_objects, lost_to_their_layers
from bnstat.formats.contents import Contents
from bnstat.model import ROLES, BatchNorm, Model, PrecedingBias, StatisticsUse, Verdict
from bnstat.model.variables import squeezed

__all__ = ["discover"]

_FLOATS = ("float", "bfloat")


def discover(
    contents: Contents,
    *,
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    values: bool = True,
) -> Model:
    """The batch-norm layers of a file.

    Args:
        contents: the file.
        patterns: (role, regular expression) pairs of a naming scheme of the user's own.
        include_shadows: also show the exponential-moving-average copies of layers.
        values: whether values may be read to tell what a layer is.
    """
    names = Names(contents, complete=bool(patterns))
    merged = merge(
        {
            "patterns": by_patterns(names, patterns),
            "layers": _from_layers(contents, values),
            "objects": from_objects(contents),
            "graphs": _from_graphs(contents),
            "names": from_names(names, include_shadows),
        }
    )
    merged = [layer for layer in merged if _is_plausible(layer, contents)]
    for layer in merged:
        _leave_out_what_does_not_fit(layer, contents)
    whole = [layer for layer in merged if is_complete(layer)]
    whole = in_order(whole, _ordered_by(contents))
    _name_by_scopes(whole, contents)
    partial = [layer for layer in merged if not is_complete(layer)]
    partial += merge({"names": without_statistics(names, _keys(merged))})
    layers = _layers(whole, contents)
    incomplete = _layers(partial, contents)
    return Model(
        contents.source,
        layers,
        incomplete=incomplete,
        notes=[
            *contents.notes,
            *lost_to_their_layers(contents, _keys(whole)),
            *what_decides(contents, layers, incomplete),
            *([] if layers or incomplete else _folded(contents)),
        ],
        explain=lambda: _explain(contents, layers, incomplete),
        stored=contents.variables,
        find_biases=lambda: _preceding_biases(contents, layers),
        find_uses=lambda: _statistics_uses(contents, layers),
    )


# What only some files need is imported when such a file comes.


def _from_layers(contents: Contents, values: bool) -> list[Sighting]:
    if not contents.layers:
        return []
    from bnstat.discovery.configuration import from_layers

    return from_layers(contents, values)


def _from_graphs(contents: Contents) -> list[Sighting]:
    if contents.graphs is None:
        return []
    from bnstat.discovery.graphs.norms import from_graphs

    return from_graphs(contents)


def _folded(contents: Contents) -> list[str]:
    if contents.graphs is None:
        return []
    from bnstat.discovery.graphs.norms import folded

    return folded(contents)


def _name_by_scopes(layers: Sequence[Merged], contents: Contents) -> None:
    if contents.graphs is None or not contents.objects:
        return
    from bnstat.discovery.scopes import name_by_scopes

    name_by_scopes(layers, contents)


def _ordered_by(contents: Contents) -> list[str]:
    """The kinds of evidence that come in the order of the network, strongest first."""
    return [
        *(["layers"] if contents.layers_in_order else []),
        "graphs",
        "objects",
        *(["names"] if contents.variables_in_order else []),
    ]


def _preceding_biases(
    contents: Contents, layers: Sequence[BatchNorm]
) -> Mapping[str, PrecedingBias]:
    from bnstat.discovery.preceding import preceding_biases

    return preceding_biases(contents, layers)


def _statistics_uses(
    contents: Contents, layers: Sequence[BatchNorm]
) -> Mapping[str, StatisticsUse]:
    if contents.graphs is None:
        return {}
    from bnstat.discovery.graphs.uses import statistics_uses

    return statistics_uses(contents, layers)


def _explain(
    contents: Contents, layers: Sequence[BatchNorm], incomplete: Sequence[BatchNorm]
) -> list[Verdict]:
    from bnstat.discovery.explanations import explain

    return explain(contents, layers, incomplete)


def _layers(merged: Sequence[Merged], contents: Contents) -> list[BatchNorm]:
    variables = contents.variables
    return [
        BatchNorm(
            name,
            {role: variables[key] for role, key in layer.roles.items()},
            evidence=layer.evidence,
            epsilon=layer.epsilon,
            momentum=layer.momentum,
            axis=layer.axis,
            trainable=layer.trainable,
            extra={label: variables[key] for label, key in layer.extra.items()},
            undecided=[variables[key] for key in layer.undecided],
            notes=layer.notes,
            uses_batch_statistics=layer.uses_batch_statistics,
            inputs=layer.inputs,
        )
        for name, layer in zip(unique_names(merged), merged, strict=True)
    ]


def _keys(layers: Sequence[Merged]) -> set[str]:
    return {key for layer in layers for key in layer.all_keys()}


def _is_plausible(layer: Merged, contents: Contents) -> bool:
    """Whether the variables can be batch norm's: floats of at least one dimension and element."""
    keys = layer.all_keys()
    if not keys:
        return layer.evidence in ("config", "graph")
    if any(key not in contents.variables for key in keys):
        return False
    variables = [contents.variables[key] for key in layer.roles.values()]
    return all(
        variable.dtype.startswith(_FLOATS) and variable.shape and 0 not in variable.shape
        for variable in variables
    )


def _leave_out_what_does_not_fit(layer: Merged, contents: Contents) -> None:
    """Take the role from a tensor whose shape does not fit, unless its name is gamma or beta."""
    shapes = {role: squeezed(contents.variables[key].shape) for role, key in layer.roles.items()}
    statistics = {shapes[role] for role in ROLES[2:] if role in shapes}
    if len(statistics) != 1:
        return
    for role in ROLES[:2]:
        if role in shapes and shapes[role] not in statistics:
            key = layer.roles[role]
            name = contents.names.get(key, key).removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
            if NAMED_FOR_ITS_ROLE.search(name):
                continue
            del layer.roles[role]
            layer.undecided = (*layer.undecided, key)
            shape = list(contents.variables[key].shape)
            layer.notes += (f"{key} is of the shape {shape}, not of that of the statistics",)
