"""Mending: new values -> a copy of a model in its own format.

Nothing else in bnstat writes models.
"""

from bnstat.mending.applied import Applied, Change
from bnstat.mending.apply import apply

__all__ = ["Applied", "Change", "apply"]
