"""A page to look at: one HTML file with everything in it, for a model, a run or two models.

`subjects` and `run` say what is on the page, `html` writes it. The numbers travel as the bits
that the file stores (`numbers`); all else that the page computes, its scripts compute in the
browser.
"""

from bnstat.output.page.html import write
from bnstat.output.page.page import Page
from bnstat.output.page.run import Frames, of_history
from bnstat.output.page.subjects import of_difference, of_model

__all__ = ["Frames", "Page", "of_difference", "of_history", "of_model", "write"]
