"""Folders of images, for models that take images in different formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bnstat.errors import BnstatError
from bnstat.estimate.data.batches import Input
from bnstat.estimate.data.stored import Images
from tests.mending.estimating.data.test_data import all_of, read

IMAGES = np.random.default_rng(1).integers(0, 256, (3, 4, 6, 4)).astype(np.uint8)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for number in range(3):
        image = np.full((4, 6, 3), 50 * number, np.uint8)
        (tmp_path / "below").mkdir(exist_ok=True)
        path = tmp_path / "below" / f"{number}.png"
        path.write_bytes(tf.io.encode_png(image).numpy())
    inputs = {"images": Input("i:0", "float32", (None, 4, 6, 3))}
    batches = read(tmp_path, inputs, images=Images(scale=1 / 50))
    assert batches[0].feeds["images"].shape == (3, 4, 6, 3)
    np.testing.assert_allclose(batches[0].feeds["images"][:, 0, 0, 0], [0, 1, 2], rtol=1e-6)
    open_size = {"images": Input("i:0", "float32", (None, None, None, 3))}
    resized = read(tmp_path, open_size, images=Images(size=(8, 2)))
    assert resized[0].feeds["images"].shape == (3, 8, 2, 3)
    with pytest.raises(BnstatError, match="pass --image-size"):
        read(tmp_path, open_size)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(BnstatError, match=r"bad\.png: is not an image"):
        read(tmp_path, inputs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images with alpha, and what file managers and notebooks leave beside them."""
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "._0.png").write_bytes(b"no image")
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".checkpoints/0.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 6, 4), "float32", IMAGES),
        ((4, 6, 3), "float16", IMAGES[..., :3]),
        ((4, 6, 3), "uint8", IMAGES[..., :3]),
        ((3, 4, 6), "float32", IMAGES[..., :3].transpose(0, 3, 1, 2)),
        ((None, 4, 6), "float32", None),
        ((4, 6, 2), "float32", None),
        ((24,), "float32", None),
    ],
)
def test_as_the_model_takes_them(folder: Path, shape: Any, dtype: str, expected: Any) -> None:
    inputs = {"x": Input("x:0", dtype, (None, *shape))}
    if expected is None:
        with pytest.raises(BnstatError, match="images, but the model does not take images"):
            read(folder, inputs)
    else:
        array = all_of(read(folder, inputs))
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, expected)


def test_resized_to_whole_numbers(folder: Path) -> None:
    inputs = {"x": Input("x:0", "uint8", (None, 2, 3, 3))}
    resized = tf.image.resize(IMAGES[..., :3].astype(np.float32), (2, 3)).numpy()
    np.testing.assert_array_equal(all_of(read(folder, inputs)), np.rint(resized))
    brighter = all_of(read(folder, inputs, images=Images(scale=2)))
    np.testing.assert_array_equal(brighter, np.rint(np.minimum(resized * 2, 255)))


def test_a_model_that_decodes_them_itself(folder: Path) -> None:
    inputs = {"x": Input("x:0", "string", (None,))}
    files = all_of(read(folder, inputs))
    assert [bytes(each) for each in files] == [
        (folder / f"{number}.png").read_bytes() for number in range(3)
    ]
