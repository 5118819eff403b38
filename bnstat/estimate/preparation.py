"""Open a model, from a path or an object, together with the data to run it on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from bnstat.discovery import discover
from bnstat.errors import NotFoundError, UnsupportedError
from bnstat.estimate.data import Settings, example_of, open_data
from bnstat.estimate.data.batches import Data
from bnstat.estimate.running import graph_files
from bnstat.estimate.running.flat_graph import Program
from bnstat.estimate.running.keras_files import keras_file
from bnstat.estimate.running.network import Network, build_network
from bnstat.estimate.running.traced import traced
from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.checkpoint import importing_tensorflow
from bnstat.live import LiveModel, is_session, live_model
from bnstat.loading import narrow, open_contents
from bnstat.model import Model
from bnstat.storage.access import refuse_url


@dataclass(frozen=True)
class Setup:
    """A model, and data that fits the model's inputs; `live` is set only for a model in memory."""

    model: Model
    network: Network
    data: Data
    live: LiveModel | None


def set_up(model: Any, data: Any, settings: Settings) -> Setup:
    """Open a model, and data that fits the model. For arguments and errors, see `recalibrate`."""
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        refuse_url(path, "TensorFlow runs models that lie on disk")
        contents = open_contents(path, settings.checkpoint, settings.step)
        patterns, include_shadows = settings.patterns, settings.include_shadows
        layers = discover(contents, patterns=patterns, include_shadows=include_shadows)
        live, where = None, path
    else:
        live = live_model(model)
        layers = live.model
        where = layers.source.path
    wanted = narrow(layers, settings.layers).layers
    if not wanted:
        raise NotFoundError(where, "has no batch-norm layer with moving statistics")
    with importing_tensorflow("to run a model"):
        import tensorflow  # noqa: F401
    if live is None:
        program = _program_of_file(path, contents, layers, settings)
    elif is_session(model):
        program = graph_files.session(where, model, settings)
    else:
        program = traced(model, where, live.variables, lambda: example_of(data, settings))
    network = build_network(program, wanted, trust=settings.trust)
    return Setup(layers, network, open_data(data, network.program.inputs, settings), live)


def _program_of_file(path: str, contents: Contents, model: Model, settings: Settings) -> Program:
    kind = contents.source.format
    if settings.signature is not None and kind != "saved-model":
        raise NotFoundError(path, f"has no signatures ({kind})", "run without --signature")
    if kind in ("keras-archive", "keras-h5"):
        return keras_file(path, model, settings)
    if kind == "saved-model":
        return graph_files.saved_model(path, contents, settings)
    if kind in ("frozen-graph", "tf1-checkpoint", "tf1-checkpoint-v1", "tf2-checkpoint"):
        return graph_files.graph_file(path, contents, settings)
    hint = (
        "pass the SavedModel, the .keras or the full .h5; or build the network in Python, load the "
        "weights into it, and call bnstat.recalibrate(model, data)"
    )
    if kind == "pytorch":
        call = "torch.optim.swa_utils.update_bn(loader, model)"
        hint = f"PyTorch: run {call}, which estimates the statistics"
    what = f"contains only weights ({kind}), without a network to run"
    raise UnsupportedError(path, what, hint)
