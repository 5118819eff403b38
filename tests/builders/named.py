"""Checkpoints of variables under names that a test chooses, written by TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from bnstat.model import ROLES

Array = NDArray[np.generic]


def save(prefix: Path | str, tensors: Mapping[str, ArrayLike]) -> Path:
    """Save tensors by name, as TensorFlow 1's `Saver` does; gives the prefix."""
    return save_slices(prefix, [(name, "", tensor) for name, tensor in tensors.items()])


def save_slices(prefix: Path | str, parts: Sequence[tuple[str, str, ArrayLike]]) -> Path:
    """Save (name, slice, tensor) parts; a slice is spelt `4 6 0,2:-`, or empty for the whole."""
    names, slices, tensors = zip(*parts, strict=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(names),
        shape_and_slices=list(slices),
        tensors=[tf.constant(tensor) for tensor in tensors],
    )
    return Path(prefix)


def save_v1(path: Path | str, parts: Sequence[tuple[str, str, ArrayLike]]) -> Path:
    """Save parts in one file of a V1 checkpoint; for the parts see `save_slices`."""
    names, slices, tensors = zip(*parts, strict=True)
    data = [tf.constant(tensor) for tensor in tensors]
    tf.raw_ops.SaveSlices(
        filename=str(path), tensor_names=list(names), shapes_and_slices=list(slices), data=data
    )
    return Path(path)


def save_shards(prefix: Path, shards: Sequence[Mapping[str, ArrayLike]]) -> Path:
    parts = []
    for number, tensors in enumerate(shards):
        base = f"{prefix}_temp/part"
        part = tf.raw_ops.ShardedFilename(basename=base, shard=number, num_shards=len(shards))
        (prefix.parent / f"{prefix.name}_temp").mkdir(exist_ok=True)
        save(part.numpy().decode(), tensors)
        parts.append(part)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=tf.stack(parts), destination_prefix=str(prefix), delete_old_dirs=True
    )
    return prefix


def layer(
    seed: int, channels: int = 4, roles: Sequence[str] = ROLES, dtype: str = "float32"
) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {role: random.random(channels).astype(dtype) for role in roles}


def under(names: Mapping[str, str], arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {names[role]: array for role, array in arrays.items()}
