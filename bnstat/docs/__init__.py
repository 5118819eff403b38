"""The documentation: Markdown pages that `bnstat help` shows, one per topic."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

TOPICS: Final = {
    "files": "What bnstat reads, and what it recognizes as batch norm.",
    "export": "Get the numbers out: formats, names of other frameworks, folded layers.",
    "check": "Find out whether a model is healthy, by hand and in CI.",
    "rules": "Every rule of check and history: what it finds and how to fix it.",
    "diff": "See what changed between two models, and prove a port.",
    "mend": "Measure drift, estimate statistics again, write new values.",
    "history": "Follow the statistics through a training run; TensorBoard and Keras.",
    "remote": "Read models from S3, Google Cloud, Azure, Hugging Face and the web.",
    "scan": "Check every model in a folder or bucket.",
    "look": "See a model in the browser, the terminal or a notebook.",
    "python": "Use bnstat from Python: the public names, with an example each.",
    "cli": "Every command and every option.",
    "survey": "What 1,020 public models showed, and how often the rules are right.",
    "speed": "How long commands take, beside the libraries of each format.",
    "safety": "What bnstat promises about files from strangers and about copies.",
}
"""Topic -> description, in reading order. The page of each topic is the file TOPIC.md."""


def read(topic: str) -> str:
    """Return the Markdown text of a topic."""
    return files(__name__).joinpath(f"{topic}.md").read_text(encoding="utf-8")
