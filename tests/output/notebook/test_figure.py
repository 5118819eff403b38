from __future__ import annotations

import sys

import numpy as np
import pytest

from bnstat.errors import UnsupportedError
from tests.output.models import layer, usual

PNG = b"\x89PNG\r\n"


def test_a_figure_of_all_roles(tmp_path):
    pytest.importorskip("matplotlib")
    bn = usual("block/bn", 64)
    figure = bn.plot()
    assert len(figure.axes) == 8
    for (left, right), variable in zip(
        zip(figure.axes[::2], figure.axes[1::2], strict=True), bn.variables.values(), strict=True
    ):
        heights = [bar.get_height() for bar in left.patches]
        assert sum(heights) == 64
        assert right.lines[0].get_ydata().tolist() == np.sort(variable.read()).tolist()
    assert figure._repr_png_().startswith(PNG)
    figure.savefig(tmp_path / "bn.png")
    assert (tmp_path / "bn.png").read_bytes().startswith(PNG)
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


@pytest.mark.parametrize("numbers", [[], [1.0], [2.0] * 5, [np.nan] * 3, [np.inf, 1, 2], [1e-8, 1]])
def test_any_values(numbers):
    pytest.importorskip("matplotlib")
    bn = layer("$\\frac$ <b>\x1b", {"moving_variance": np.array(numbers, np.float64)})
    assert bn.plot()._repr_png_().startswith(PNG)


def test_matplotlib_is_not_installed(monkeypatch):
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match="pip install matplotlib"):
        usual("bn").plot()
