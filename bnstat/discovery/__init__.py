"""Finding the batch-norm layers in the contents of a file.

The sources of evidence are, the strongest first: layer configurations, the object graph,
computation graphs, and names. Sightings that share a variable are merged into one layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bnstat.discovery.merge import Sighting, in_order, merge, unique_names
from bnstat.discovery.names import (
    NAMED_FOR_ITS_ROLE,
    VariableNames,
    by_patterns,
    from_names,
    name_by_scopes,
    without_statistics,
)
from bnstat.discovery.objects import from_objects, note_lost_statistics
from bnstat.discovery.schemes import describe_lookalike
from bnstat.formats.contents import Contents
from bnstat.model import (
    ROLES,
    BatchNorm,
    Explanation,
    Model,
    PrecedingBias,
    StatisticsUse,
    squeezed,
)
from bnstat.text import count

_UNUSED_NAMES = (
    (re.compile(r"/(moving_mean|moving_variance)$"), "moving statistic without its counterpart"),
    (
        re.compile(r"(^|[/.])running_(mean|var)$"),
        "running mean or variance without the other, or with a count beside it: "
        "statistics of data, not of a layer",
    ),
    (
        re.compile(r"(^|/)(gamma|beta|scale|offset)$"),
        "no moving statistics beside it: layer, group or instance norm, or statistics not saved",
    ),
)
"""(pattern of variable names, why such a variable does not belong to a batch norm)."""


def discover(
    contents: Contents,
    *,
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    values: bool = True,
) -> Model:
    """Return the batch-norm layers of a file as a model.

    `patterns` contains pairs of a role and a regular expression for variable names. If `values` is
    False, no values are read, and layers without names are judged by their shapes alone.
    """
    # Only the files that need these modules import them.
    configured: Sequence[Sighting] = ()
    other_norms: Mapping[str, str] = {}
    if contents.layers:
        from bnstat.discovery.configuration import from_layers, of_other_norms

        configured = from_layers(contents, values)
        other_norms = of_other_norms(contents)
    computed: Sequence[Sighting] = ()
    if contents.graphs is not None:
        from bnstat.discovery.graphs.norms import from_graphs

        computed = from_graphs(contents)
    names = VariableNames(contents, complete=bool(patterns))
    merged = merge(
        {
            "patterns": by_patterns(names, patterns),
            "layers": configured,
            "objects": from_objects(contents),
            "graphs": computed,
            "names": [
                sighting
                for sighting in from_names(names, include_shadows)
                if other_norms.keys().isdisjoint(sighting.roles.values())
            ],
        }
    )
    sightings = [sighting for sighting in merged if _is_plausible(sighting, contents)]
    for sighting in sightings:
        _drop_misfits(sighting, contents)
    ordered_by = [
        *(["layers"] if contents.layers_in_order else []),
        "graphs",
        "objects",
        *(["names"] if contents.variables_in_order else []),
    ]
    complete = in_order((sighting for sighting in sightings if sighting.is_complete), ordered_by)
    if contents.graphs is not None and contents.objects:
        name_by_scopes(complete, contents)
    partial = [sighting for sighting in sightings if not sighting.is_complete]
    partial += merge({"names": without_statistics(names, _keys(sightings))})
    layers = _layers(complete, contents)
    incomplete = _layers(partial, contents)
    notes = [*contents.notes, *note_lost_statistics(contents, _keys(complete))]
    notes += _undecided_notes(contents, layers, incomplete)
    if contents.graphs is not None and not layers and not incomplete:
        from bnstat.discovery.graphs.norms import note_folded

        notes += note_folded(contents)

    def find_biases() -> Mapping[str, PrecedingBias]:
        from bnstat.discovery.preceding import preceding_biases

        return preceding_biases(contents, layers)

    def find_uses() -> Mapping[str, StatisticsUse]:
        from bnstat.discovery.graphs.uses import statistics_uses

        return statistics_uses(contents, layers)

    return Model(
        contents.source,
        layers,
        incomplete=incomplete,
        notes=notes,
        explain=lambda: _explain(contents, layers, incomplete, other_norms),
        stored=contents.variables,
        find_biases=find_biases,
        find_uses=find_uses,
    )


def _layers(sightings: Sequence[Sighting], contents: Contents) -> list[BatchNorm]:
    variables = contents.variables
    return [
        BatchNorm(
            name,
            {role: variables[key] for role, key in sighting.roles.items()},
            evidence=sighting.evidence,
            epsilon=sighting.epsilon,
            momentum=sighting.momentum,
            axis=sighting.axis,
            trainable=sighting.trainable,
            extra={label: variables[key] for label, key in sighting.extra.items()},
            undecided=[variables[key] for key in sighting.undecided],
            notes=sighting.notes,
            uses_batch_statistics=sighting.uses_batch_statistics,
            inputs=sighting.inputs,
        )
        for name, sighting in zip(unique_names(sightings), sightings, strict=True)
    ]


def _keys(sightings: Sequence[Sighting]) -> set[str]:
    return {key for sighting in sightings for key in sighting.all_keys()}


def _is_plausible(sighting: Sighting, contents: Contents) -> bool:
    """Return True if the file has all variables, and those with a role are non-empty floats."""
    keys = sighting.all_keys()
    if not keys:
        return sighting.evidence in ("config", "graph")
    if any(key not in contents.variables for key in keys):
        return False
    variables = [contents.variables[key] for key in sighting.roles.values()]
    are_floats = all(variable.dtype.startswith(("float", "bfloat")) for variable in variables)
    return are_floats and all(variable.shape and 0 not in variable.shape for variable in variables)


def _drop_misfits(sighting: Sighting, contents: Contents) -> None:
    """Move gamma or beta to `undecided` if neither its shape nor its name fits batch norm."""
    shapes = {role: contents.variables[key].shape for role, key in sighting.roles.items()}
    statistics = {squeezed(shapes[role]) for role in ROLES[2:] if role in shapes}
    if len(statistics) != 1:
        return
    for role in ROLES[:2]:
        if role not in shapes or squeezed(shapes[role]) in statistics:
            continue
        key = sighting.roles[role]
        name = contents.name_of(key).removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        if not NAMED_FOR_ITS_ROLE.search(name):
            sighting.roles = {own: other for own, other in sighting.roles.items() if own != role}
            sighting.undecided += (key,)
            note = f"{key} has shape {list(shapes[role])}, unlike the moving statistics"
            sighting.notes += (note,)


def _explain(
    contents: Contents,
    layers: Sequence[BatchNorm],
    incomplete: Sequence[BatchNorm],
    other_norms: Mapping[str, str],
) -> list[Explanation]:
    """Return, for each variable in stored order, the reason why it belongs to a layer or not.

    `other_norms` maps the keys of other normalizations to their classes.
    """
    taken = {
        key: Explanation(key, None, None, f"its layer's class is {own_class}")
        for key, own_class in other_norms.items()
    }
    for layer in (*layers, *incomplete):
        reason, undecided = _why_used(layer), "the file does not record its role"
        for role, variable in layer.variables.items():
            taken[variable.key] = Explanation(variable.key, layer.name, role, reason)
        for label, variable in layer.extra.items():
            taken[variable.key] = Explanation(variable.key, layer.name, label, "an extra variable")
        for variable in layer.undecided:
            taken[variable.key] = Explanation(variable.key, layer.name, None, undecided)
    return [
        taken.get(key) or Explanation(key, None, None, _why_unused(key, contents.name_of(key)))
        for key in contents.variables
    ]


def _why_used(layer: BatchNorm) -> str:
    missing = [role for role in ROLES[2:] if role not in layer.variables]
    if not missing:
        return f"found by {layer.evidence}"
    if layer.uses_batch_statistics:
        return "its layer normalizes each batch by the statistics of that batch"
    lacks = "moving statistics are" if len(missing) == 2 else f"{missing[0].replace('_', ' ')} is"
    return f"its layer's {lacks} not in the file"


def _why_unused(key: str, name: str) -> str:
    reasons = (reason for pattern, reason in _UNUSED_NAMES if pattern.search(name))
    unknown = "its name does not match a naming scheme of batch norm"
    return describe_lookalike(key, name) or next(reasons, unknown)


def _undecided_notes(
    contents: Contents, layers: Sequence[BatchNorm], incomplete: Sequence[BatchNorm]
) -> list[str]:
    """Return notes on undecided layers and variables, and on options that specify the roles."""
    decider = "to decide, pass --pattern ROLE=REGEX"
    if contents.configured is not None:
        decider = "to decide, pass the model's architecture with --config FILE"
    notes = [
        f"{layer.name} {note}: the roles of its variables are unknown"
        for layer in incomplete
        for note in layer.notes
        if layer.undecided and layer.evidence == "config"
    ]
    unsure = [layer.name for layer in incomplete if layer.undecided and layer.evidence == "name"]
    if unsure:
        notes.append(
            f"{count(len(unsure), 'layer')} may be batch norm, but the file does not record the "
            f"class: {_few(unsure)}; {decider}"
        )
    if names := _few([layer.name for layer in layers if layer.undecided]):
        notes.append(f"the file does not record the role of some variables of {names}; {decider}")
    helps = bool(notes) or any(layer.epsilon is None for layer in layers)
    if contents.configured is not None and contents.beside is not None and helps:
        notes.append(
            f"{contents.beside} in the same folder may be the model's architecture; to use it, "
            f"pass --config {contents.beside}"
        )
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
