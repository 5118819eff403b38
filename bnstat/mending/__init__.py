"""Apply new values: write a copy of a model in its own format.

No other package of bnstat writes models.
"""

from __future__ import annotations

from bnstat.mending.apply import apply
from bnstat.mending.pairing import Applied, Change

__all__ = ["Applied", "Change", "apply"]
