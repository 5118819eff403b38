"""The results of `drift` and `recalibrate` as text, JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from bnstat.estimate.drift import SHIFTED, Drift, LayerDrift
from bnstat.estimate.modes import Modes, Outputs, percent
from bnstat.estimate.recalibration import FAR, Recalibration
from bnstat.exchange.csv import cell
from bnstat.output.documents import csv_document, json_document, members
from bnstat.output.numbers import compact
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import Column, facts, layer_table, wrapped

CHANNELS: Final = (
    *("stored_mean", "stored_variance", "mean", "variance"),
    *("shift", "ratio", "divergence"),
)
"""The attributes of `LayerDrift` with one number per channel."""

LEGEND: Final = (
    "shift: (mean of the data - stored mean) / stored standard deviation, at the worst channel; "
    "variance: variance of the data / stored variance, lowest to highest; J: how "
    "different both distributions are (symmetric divergence, mean over the channels): 0 if they "
    f"are equal, shifted above {SHIFTED}"
)
RECALIBRATION_LEGEND: Final = (
    "moved: distance between new and old mean or deviation; uncertainty: half the distance between "
    "halves of the data; residual: distance between new statistics and inputs in inference; "
    "each at the worst channel, in standard deviations",
    "variance: new variance / old variance, where it changed most",
)

_SHIFTED: Final = "shifted: the data has another distribution than the data of the statistics"
_STYLES: Final = {"shifted": "yellow", "never-updated": "red", "invalid": "red"}

SMALL_BATCH: Final = 32
"""The batch size below which inaccurate statistics can lower the accuracy themselves."""

_MODES: Final = {
    "batch-statistics": ", and the network was trained with the statistics of each batch: "
    "inference is broken, and bnstat recalibrate mends it",
    "stored-statistics": ", and the network was trained in inference mode, with these statistics: "
    "keep them; bnstat recalibrate would break the network",
    "unknown": ", which are far from the statistics of their inputs. If the network was trained "
    "with the statistics of each batch, bnstat recalibrate mends it; if it was trained in "
    "inference mode, recalibrating breaks it. The evidence does not show which is true. --labels "
    "compares the accuracies",
}
_BETTER: Final = {
    "own": "the data's own statistics, which bnstat recalibrate estimates",
    "stored": "these statistics: keep them",
}


def text_lines(result: Drift, model: str, screen: Screen) -> Iterator[str]:
    """Yield the lines that compare a model's stored statistics with the statistics of data."""
    header = [("path", legible(model)), ("data", f"{result.samples} samples")]
    if result.evidence is not None and result.evidence.data is not None:
        header += _modes(result.evidence.data, result.samples)
    elif result.accuracy is not None:
        header.append(("accuracy", percent(result.accuracy)))
    yield from facts(header, screen, len("accuracy"))
    yield ""
    layers = sorted(result.layers, key=lambda layer: -layer.total)
    styles = {row: _STYLES.get(layer.state, "") for row, layer in enumerate(layers)}
    cells = [_shift_and_ratios(layer) for layer in layers]
    columns = [
        Column("ch", [str(layer.mean.size) for layer in layers], right=True),
        Column("shift", [shift for shift, _ in cells], right=True),
        Column("variance", [ratios for _, ratios in cells], right=True),
        Column("J", [compact(layer.total, 3) for layer in layers], right=True, styles=styles),
        Column("", [layer.state.replace("-", " ") for layer in layers], styles=styles),
    ]
    yield from layer_table([layer.layer for layer in layers], columns, [LEGEND], screen)
    yield ""
    yield from wrapped(_advice(result), screen)


def _advice(result: Drift) -> str:
    """Return text on the state of a model's statistics, and on what to do."""
    if result.state == "invalid":
        return (
            "invalid: stored statistics or inputs of layers are NaN or infinite, or a variance is "
            "negative; bnstat check names such layers, and bnstat recalibrate replaces their "
            "statistics"
        )
    if result.state == "healthy":
        return "healthy: the inputs of the layers have the stored statistics"
    if result.state == "never-updated":
        start = "never updated: layers still hold the initial mean 0 and variance 1"
        evidence = result.evidence
        if evidence is None:
            return start + _MODES["unknown"]
        text = _MODES[evidence.trained_with]
        better = None if evidence.data is None else evidence.data.better
        if evidence.trained_with == "unknown" and better is not None:
            text = (
                ". The evidence does not show how the network was trained, but on this data it is "
                f"right more often with {_BETTER[better]}"
            )
        return f"{start}{text} ({'; '.join(evidence.reasons)})"
    return f"{_SHIFTED}{_advice_if_shifted(result)}"


def _advice_if_shifted(result: Drift) -> str:
    evidence = result.evidence
    modes = None if evidence is None else evidence.data
    better = None if modes is None else modes.better
    needs = ", but the network needs the stored statistics and must not be recalibrated"
    if modes is not None and better == "stored":
        before, after = (percent(each.accuracy or 0) for each in (modes.stored, modes.own))
        figures = f"accuracy {before} with the stored statistics, {after} with the data's own"
        size = result.samples / result.batches
        if size < SMALL_BATCH:
            return (
                ". The network is right more often with the stored statistics, but "
                f"those of batches of {compact(size, 2)} are inaccurate ({figures}): use batches "
                f"of at least {SMALL_BATCH}, or bnstat recalibrate with --labels, which writes "
                "no copy of lower accuracy"
            )
        return f"{needs} ({figures})"
    if better is None and evidence is not None:
        if evidence.trained_with == "stored-statistics":
            return f"{needs} ({'; '.join(evidence.reasons)})"
        if result.not_trainable and evidence.trained_with == "unknown":
            frozen = f"{len(result.not_trainable)} of {len(result.layers)}"
            return (
                f". {frozen} layers are stored as not trainable, so the network was "
                "probably trained with the stored statistics and needs them: use bnstat "
                "recalibrate only with --labels, which writes no copy of lower accuracy"
            )
    return ", or the statistics do not belong to these weights; bnstat recalibrate adapts them"


def _shift_and_ratios(layer: LayerDrift) -> tuple[str, str]:
    """Return the largest shift, and the range of variance ratios; `-` if all are NaN."""
    shifts, ratios = (values[~np.isnan(values)] for values in (layer.shift, layer.ratio))
    shift = variance = "-"
    if shifts.size:
        worst = float(shifts[np.argmax(np.abs(shifts))])
        shift = f"{'+' if worst > 0 else ''}{compact(worst, 3)}"
    if ratios.size:
        low, high = (f"x{compact(float(ratio), 3)}" for ratio in (ratios.min(), ratios.max()))
        variance = f"{low} to {high}"
    return shift, variance


def recalibration_text(
    result: Recalibration, model: str, copy: str | None, screen: Screen
) -> Iterator[str]:
    """Yield the lines that show the new statistics of a model, and the path of its copy."""
    header = [("path", legible(model))]
    if copy is not None:
        header.append(("copy", legible(copy)))
    waves = f", in {result.waves} waves" if result.exact else ""
    header.append(("data", f"{result.samples} samples in {result.batches} batches{waves}"))
    if result.accuracy is not None:
        before, after = map(percent, result.accuracy)
        header.append(("accuracy", f"{before} before, {after} after"))
    elif result.evidence.data is not None:
        header += _modes(result.evidence.data, result.samples)
    yield from facts(header, screen, len("accuracy"))
    yield ""
    layers = result.layers
    far = {row: "yellow" for row, layer in enumerate(layers) if layer.remains > FAR}
    sign = screen.glyphs.plus_minus
    errors = ["" if layer.error is None else f"{sign}{layer.error:.4f}" for layer in layers]
    columns = [
        Column("ch", [str(layer.mean.size) for layer in layers], right=True),
        Column("moved", [compact(layer.moved, 3) for layer in layers], right=True),
        Column("variance", [f"x{compact(layer.ratio, 3)}" for layer in layers], right=True),
        Column("uncertainty", errors, right=True),
        Column("residual", [f"{layer.remains:.4f}" for layer in layers], right=True, styles=far),
    ]
    names = [layer.layer for layer in layers]
    yield from layer_table(names, columns, RECALIBRATION_LEGEND, screen)
    yield ""
    yield f"{len(layers)} of {len(layers) + len(result.left)} layers recalibrated"


def notes(result: Recalibration) -> Iterator[str]:
    """Yield notes about layers that were not recalibrated, and warnings about the result."""
    evidence, layers = result.evidence, len(result.layers)
    reasons = "; ".join(evidence.reasons)
    is_unknown = evidence.trained_with == "unknown"
    is_better = evidence.data is not None and evidence.data.better == "own"
    for name, reason in result.left.items():
        yield f"note: {name} was not recalibrated: {reason}"
    if result.objection is not None:
        yield f"warning: the model {result.objection}"
    elif result.is_initial and is_unknown and not is_better:
        yield (
            "warning: nothing shows whether the network was trained with the statistics of each "
            "batch. If it was trained in inference mode, the old model is right and the new one "
            f"is broken: compare both, or pass --labels ({reasons})"
        )
    elif result.accuracy is None and evidence.trained_with == "stored-statistics":
        yield (
            "warning: training used the stored statistics, so the old model is probably right and "
            f"the new one broken: --labels measures whether new statistics are better ({reasons})"
        )
    elif result.not_trainable and result.accuracy is None and is_unknown:
        yield (
            f"warning: {len(result.not_trainable)} of {layers} layers are stored as "
            "not trainable, so training probably used the stored statistics, and new ones may "
            "break the network: --labels measures whether new ones are better"
        )
    far = [layer for layer in result.layers if layer.remains > FAR]
    if far:
        worst = max(far, key=lambda layer: layer.remains)
        yield (
            f"warning: {len(far)} of {layers} layers are still off by more than {FAR} "
            f"standard deviations, {worst.layer} by {compact(worst.remains, 2)}: "
            "use --exact, or larger batches"
        )


def _modes(modes: Modes, samples: int) -> Iterator[tuple[str, str]]:
    """Yield (label, text) pairs: the outputs with stored statistics and with the data's own."""
    stored, own = modes.stored, modes.own
    part = "" if modes.samples == samples else f", over {modes.samples} of the samples"
    if stored.accuracy is not None and own.accuracy is not None:
        before, after = percent(stored.accuracy), percent(own.accuracy)
        text = f"{before} with the stored statistics, {after} with the data's own{part}"
        yield "accuracy", text
    elif stored.information is not None and own.information is not None:
        before, after = compact(stored.information, 3), compact(own.information, 3)
        text = f"{before} nats with the stored statistics, {after} with the data's own{part}"
        yield "outputs", f"mutual information with the inputs: {text}"
        if before != after:
            which = "the stored" if stored.information > own.information else "the data's own"
            sure = "better" if modes.trained_with != "unknown" else "better, but not conclusive"
            yield "", f"the predictions depend more on the input with {which} statistics ({sure})"
    else:
        yield "outputs", f"stored statistics: {_described(stored)}"
        yield "", f"the data's own: {_described(own)}"
        yield "", f"root mean square of the difference: {compact(modes.difference, 3)}{part}"


def _described(outputs: Outputs) -> str:
    low, high, spread = (compact(each, 3) for each in (outputs.low, outputs.high, outputs.spread))
    end = "" if outputs.saturated is None else f", {percent(outputs.saturated)} saturated"
    return f"{low} to {high}, varying by {spread} from sample to sample{end}"


def json_lines(result: Drift, model: str) -> Iterator[str]:
    """Yield the result of `drift` for a model as lines of JSON."""
    return json_document(
        path=model,
        **members(result, "samples", "accuracy", "state", "largest"),
        **_shared(result),
        layers=[
            {
                "name": layer.layer,
                "state": layer.state,
                "divergence": layer.total,
                **{name: getattr(layer, name).tolist() for name in CHANNELS[:-1]},
                "divergences": layer.divergence.tolist(),
            }
            for layer in result.layers
        ],
    )


def _shared(result: Drift | Recalibration) -> dict[str, Any]:
    evidence = result.evidence
    return {
        "trained_with": "unknown" if evidence is None else evidence.trained_with,
        "evidence": evidence and asdict(evidence),
        "left": [{"layer": name, "reason": reason} for name, reason in result.left.items()],
    }


def csv_lines(result: Drift) -> Iterator[str]:
    """Yield the result of `drift` as lines of CSV, with one row per channel."""
    tables = ((layer.layer, [*members(layer, *CHANNELS).values()]) for layer in result.layers)
    rows = (
        [cell(name), channel, *map(repr, numbers)]
        for name, columns in tables
        for channel, numbers in enumerate(np.stack(columns, 1).tolist())
    )
    return csv_document(("layer", "channel", *CHANNELS), rows)


def recalibration_json(result: Recalibration, model: str, copy: str | None) -> Iterator[str]:
    """Yield a recalibration and the path of the copy, if any, as lines of JSON."""
    before, after = result.accuracy or (None, None)
    return json_document(
        path=model,
        copy=copy,
        **members(result, "samples", "batches", "exact", "waves"),
        accuracy_before=before,
        accuracy_after=after,
        **_shared(result),
        layers=[
            {
                "name": layer.layer,
                "channels": layer.mean.size,
                "moved": layer.moved,
                "variance_ratio": layer.ratio,
                "sure_to": layer.error,
                "remains": layer.remains,
                "moving_mean": [float(number) for number in layer.mean],
                "moving_variance": [float(number) for number in layer.variance],
            }
            for layer in result.layers
        ],
    )
