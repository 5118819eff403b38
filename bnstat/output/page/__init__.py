"""A page to look at: one HTML file with everything in it, for a model, a run or two models.

`subjects` and `run` say what is on the page, `html` writes it. The numbers travel as the bits
that the file stores (`numbers`); all else that the page computes, its scripts compute in the
browser.
"""

from __future__ import annotations

from bnstat.output.page.html import write
from bnstat.output.page.page import Frames, Page, of_difference, of_history, of_model

__all__ = ["Frames", "Page", "of_difference", "of_history", "of_model", "write"]
