"""An executed notebook, with each output in its richest format."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

from tests.terminal import ROOT

NOTEBOOK = Path(__file__).with_name("look.ipynb")


@pytest.fixture(scope="module")
def outputs():
    libraries = ("ipykernel", "matplotlib", "nbclient", "nbformat")
    *_, nbclient, nbformat = map(pytest.importorskip, libraries)
    if not (Path(sys.prefix) / "share/jupyter/kernels/python3").is_dir():
        pytest.skip("ipykernel is not installed in this environment")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    results = {}
    for cell in notebook.cells:
        (result,) = cell.outputs
        results[cell.source.split("\n")[-1]] = result.data
    return results


def test_tables_with_charts(outputs):
    for source, data in outputs.items():
        if "plot" in source or "to_frame" in source:
            continue
        assert "<table>" in data["text/html"], source
        assert "<svg" in data["text/html"], source


@pytest.mark.slow
def test_the_layers_figure_is_shown_once(outputs):
    image = base64.b64decode(outputs['model["block1/bn"].plot()']["image/png"])
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000


def test_a_data_frame(outputs):
    pytest.importorskip("polars")
    assert "block3/bn" in outputs["model.to_frame()"]["text/html"]
