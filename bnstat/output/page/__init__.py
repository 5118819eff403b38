"""Reports: one HTML file about a model, a run or two models."""

from __future__ import annotations

from bnstat.output.page.page import Frames, Page, of_difference, of_history, of_model, write

__all__ = ["Frames", "Page", "of_difference", "of_history", "of_model", "write"]
