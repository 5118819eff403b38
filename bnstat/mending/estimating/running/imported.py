"""A graph in TensorFlow, and what TensorFlow has against it."""

from __future__ import annotations

import re
from typing import Any

from bnstat.errors import BnstatError

_NODE = re.compile(r"\[\[\{\{node (.+?)\}\}")
_UNFED = "You must feed a value for placeholder tensor"


def imported(graph_def: Any, where: str) -> Any:
    """A `GraphDef` as a `tf.Graph`.

    Args:
        graph_def: the graph.
        where: for messages.

    Raises:
        BnstatError: TensorFlow refuses it.
    """
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise refused(where, error) from None
    return graph


def refused(where: str, error: Exception) -> BnstatError:
    """What TensorFlow says, in one line: what it tells first is how it got there."""
    message = str(getattr(error, "message", None) or error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    places = [place for place, line in enumerate(lines) if place and _NODE.match(line)]
    reason, at = (lines or ["no reason given"])[0], ""
    if places:
        reason = lines[places[0] - 1]
        found = _NODE.match(lines[places[0]])
        at = f" (at {found[1]})" if found else ""
    hint = "give its value by --feed, or name it by --input" if reason.startswith(_UNFED) else ""
    return BnstatError(where, f"TensorFlow cannot run it: {reason}{at}", hint)
