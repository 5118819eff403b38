"""Numbers as short text, for people."""

from __future__ import annotations

import math
from typing import Final

_MOST_DIGITS: Final = 4


def compact_pair(mean: float, deviation: float, digits: int) -> tuple[str, str]:
    """Return a mean and its deviation for a table, with as many decimals as the deviation allows.

    Args:
        mean: any number.
        deviation: not negative.
        digits: significant digits of the deviation.
    """
    spread = compact(deviation, digits)
    sizes = (abs(mean), deviation)
    if not deviation or not all(map(math.isfinite, sizes)) or not 1e-3 <= max(sizes) < 1e5:
        return compact(mean, digits), spread
    decimals = _decimals(deviation, digits)
    if mean:
        decimals = min(decimals, _decimals(mean, _MOST_DIGITS))
    # Adding 0 makes 0 of a -0, which is what a small negative mean may be rounded to.
    return f"{round(mean, decimals) + 0.0:.{decimals}f}", spread


def compact(number: float, digits: int) -> str:
    """Return a number for a table, with this number of significant digits.

    It has at most one decimal more than that, and none if it is an integer.
    """
    if not math.isfinite(number):
        return str(number)
    size = abs(number)
    if number == int(number) and size < 1e5:
        return str(int(number))
    if not 1e-3 <= size < 1e5:
        mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{number:.{_decimals(number, digits)}f}"


def _decimals(number: float, digits: int) -> int:
    """Return the number of decimals that shows the given digits of a number other than 0."""
    return min(max(0, digits - 1 - math.floor(math.log10(abs(number)))), digits + 1)
