"""Histograms as small as a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from bnstat.model import Array, Summary, as_float64

BINS: Final = 8


def heights(array: Array, summary: Summary) -> list[int]:
    """The heights of a histogram's bars, from 0 to 8; a bar that counts anything is not 0."""
    extent = summary.max - summary.min
    if not np.isfinite(extent):
        return []
    if extent == 0:
        return [8]
    values = as_float64(array).ravel()
    if summary.bad:
        values = values[np.isfinite(values)]
    bins = ((values - summary.min) / extent * BINS).astype(np.int64)
    counts = np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    scaled: list[int] = np.ceil(counts * (8 / counts.max())).astype(int).tolist()
    return scaled


def draw(bars: Sequence[int], blocks: str) -> str:
    """The bars in a font's blocks, the lowest first; a space where there is none."""
    return "".join(blocks[height - 1] if height else " " for height in bars).ljust(BINS)
