"""Draw the images of two generators before and after `bnstat recalibrate`.

    python tests/pictures/make_generator_pictures.py INFERENCE BATCH

INFERENCE is the `generator.h5` of github.com/Kifal15/AnimeGAN, which was trained in inference
mode. BATCH is the file of github.com/nelson123-lab/DCGAN_Neural_Network, which was trained with the
statistics of each batch. Both store mean 0 and variance 1. The first needs them, so recalibrating
it has to be forced; the second makes digits only afterwards. Needs Pillow.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import bnstat
from bnstat.estimate.data import Settings
from bnstat.estimate.passes import Runner
from bnstat.estimate.preparation import set_up

FOLDER = Path(__file__).parent
ROWS, COLUMNS = 2, 5
SIZE = 40
"""Pixels of an image in each direction, if it has more."""

LATENT = 100
"""Random numbers that each generator takes for an image."""

SAMPLES = 512
"""Random inputs for estimating the statistics."""


def main() -> None:
    """Write four pictures beside this module."""
    for name, path in zip(("inference", "batch"), sys.argv[1:], strict=True):
        latent = np.random.default_rng(0).normal(size=(SAMPLES, LATENT)).astype("float32")
        with TemporaryDirectory() as folder:
            copy = Path(folder) / Path(path).name
            result = bnstat.recalibrate(path, latent, copy, force=True)
            print(f"{name}: trained with {result.evidence.trained_with}; {result.objection}")
            for when, model in (("before", path), ("after", copy)):
                draw(model, latent[: ROWS * COLUMNS]).save(
                    FOLDER / f"generator_{name}_{when}.png", optimize=True
                )


def draw(model: str | Path, latent: np.ndarray) -> Image.Image:
    """Return the images that a generator makes, in a grid of a few colours."""
    network = set_up(model, latent, Settings()).network
    with Runner(network, by_batch=False) as runner:
        (name,) = network.program.inputs
        feeds, output = {name: latent}, network.program.outputs[0]
        _, tensors = runner.run(feeds, network.stored(), [], [output], cached={})
    images = tensors[output]
    _, height, width, channels = images.shape
    grid = images.reshape(ROWS, COLUMNS, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(ROWS * height, COLUMNS * width, channels)
    shades = np.clip((grid + 1) * 127.5, 0, 255).astype("uint8")
    picture = Image.fromarray(shades.squeeze())
    picture.thumbnail((COLUMNS * SIZE, ROWS * SIZE))
    return picture.quantize(16 if channels == 1 else 48)


if __name__ == "__main__":
    main()
