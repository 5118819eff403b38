"""The names of layers that other layers hold, against the live models' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bnstat

layers = keras.layers
SHAPE = (4, 4, 3)


class Chain(layers.Layer):
    """Calls what it holds, one after the other."""

    def parts(self) -> list[Any]:
        raise NotImplementedError

    def call(self, x: Any, training: bool = False) -> Any:
        for part in self.parts():
            x = part(x, training=training)
        return x


@keras.saving.register_keras_serializable("names")
class Block(Chain):
    """Norms in a list, a dict, a tuple, and by themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norms = [norm(), norm()]
        self.others = {"a": norm(), "b": norm(name="mine")}
        self.pair = (norm(), norm())
        self.last = norm()

    def parts(self) -> list[Any]:
        return [*self.norms, *self.others.values(), *self.pair, self.last]


@keras.saving.register_keras_serializable("names")
class Outer(Chain):
    """Blocks in a list, and a norm."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = [Block(name="p"), Block()]
        self.own = norm()

    def parts(self) -> list[Any]:
        return [*self.blocks, self.own]


class Subclassed(keras.Model):
    """A model that is built when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = norm()
        self.blocks = [Block(), Outer(name="outer")]
        self.heads = {"one": norm(), "two": norm()}

    def call(self, x: Any, training: bool = False) -> Any:
        for part in (self.stem, *self.blocks, *self.heads.values()):
            x = part(x, training=training)
        return x


def norm(**options: Any) -> Any:
    return layers.BatchNormalization(**options)


def functional() -> Any:
    start = keras.Input(SHAPE)
    x = norm(name="stem")(layers.Conv2D(3, 1)(start))
    x = Outer(name="outer")(Block(name="blk")(x))
    return keras.Model(start, norm()(x))


def sequential() -> Any:
    return keras.Sequential(
        [keras.Input(SHAPE), norm(), Block(name="blk"), layers.ReLU(), Block(), norm(name="end")]
    )


def nested() -> Any:
    start = keras.Input(SHAPE)
    inner = keras.Sequential([keras.Input(SHAPE), norm(), Block(name="blk")], name="inner")
    return keras.Model(start, norm()(Block(name="blk")(inner(start))), name="top")


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


MODELS = {
    "functional": functional,
    "sequential": sequential,
    "nested": nested,
    "subclassed": subclassed,
}


def build(kind: str) -> tuple[Any, dict[bytes, Any]]:
    """A model, the first of its kind or not, and its norms by the bytes of their moving means."""
    model = MODELS[kind]()
    every = [layer for layer in model._flatten_layers() if type(layer) is type(norm())]
    random = np.random.default_rng(5)
    for layer in every:
        layer.moving_mean.assign(random.random(3))
    return model, {layer.moving_mean.numpy().tobytes(): layer for layer in every}


def found(path: Path) -> dict[bytes, str]:
    """Moving mean -> the layer's name."""
    return {layer.array("moving_mean").tobytes(): layer.name for layer in bnstat.load(path)}


SAVES: dict[str, Callable[[Any, Path], Any]] = {
    "tf.saved_model.save": tf.saved_model.save,
    "model.export": lambda model, path: model.export(path, verbose=False),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("save", SAVES)
def test_saved_models_tell_the_whole_path(tmp_path: Path, kind: str, save: str) -> None:
    model, norms = build(kind)
    SAVES[save](model, tmp_path / "saved")
    assert found(tmp_path / "saved") == {mean: layer.path for mean, layer in norms.items()}
