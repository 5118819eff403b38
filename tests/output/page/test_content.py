"""The content of pages, parsed without a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bnstat.checks import check, find_rules
from bnstat.errors import BnstatError, DamagedError
from bnstat.model import ROLES, Source
from bnstat.output import page as pages
from tests.output.models import layer, model, usual
from tests.output.page.written import Shown, of_model, of_run, of_two

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"quoted\" 'twice' & more",
    "<!--",
    "\u202eright-to-left\u202c \u05e9\u05dc\u05d5\u05dd",
    "line\u2028separator\x1b[31m",
    "{{ page.title }}",
    "x" * 10_000,
]


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.dtype(">f4")]
)
def test_numbers_have_the_stored_bits(kind: type) -> None:
    arrays = {role: np.arange(5).astype(kind) / np.array(3).astype(kind) for role in ROLES}
    arrays["beta"] = np.array([0.0, -0.0, 1, 2, 3]).astype(kind)
    shown = Shown(of_model(model(layer("bn", arrays))))
    ((places,),) = (row["stored"] for row in shown.data["rows"])
    for role, place in zip(ROLES, places, strict=True):
        packed = shown.array(place)
        exact = arrays[role].astype(packed.dtype)
        assert packed.tobytes() == exact.tobytes()
        assert (exact.astype(arrays[role].dtype) == arrays[role]).all()


def test_nan_and_infinities_keep_their_bits() -> None:
    bits = np.array([0x7FC00001, 0x7F800001, 0xFF800000, 0x7F800000, 1], np.uint32)
    arrays = {"moving_mean": bits.view(np.float32), "moving_variance": np.ones(5, np.float32)}
    shown = Shown(of_model(model(layer("bn", arrays))))
    (places,) = shown.data["rows"][0]["stored"]
    assert places[0] is places[1] is None
    assert shown.array(places[2]).view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_never_markup(name: str) -> None:
    plain = Shown(of_model(model(usual("bn"))))
    sick = layer(name, {"moving_mean": [np.nan], "moving_variance": [-1.0]}, notes=[name])
    source = Source(f"runs/{name}", "tf2-checkpoint", name, 1, name)
    shown = Shown(of_model(model(sick, source=source)))
    assert len(shown.all("script")) == len(plain.all("script")) == 3
    assert shown.all("img") == []
    named = shown.data["rows"][0]["name"]
    assert named.isprintable()
    assert named == name or not name.isprintable()
    assert named in shown.all("h1")[0]
    assert not any(attr.startswith("on") for _, attrs, _ in shown.elements for attr in attrs)


def test_the_policy_allows_only_the_style_and_the_script_of_the_page() -> None:
    text = of_model(model(usual("bn")))
    shown = Shown(text)
    assert "default-src 'none'" in shown.policy
    assert "unsafe" not in shown.policy
    script = shown.all("script")[2]
    for tag, content in (("style", shown.all("style")[0]), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in shown.policy
    for _, attributes, _ in shown.elements:
        assert not attributes.keys() & {"src", "href", "style", "action"}
    assert "@import" not in text
    assert "url(" not in text
    # The licence of uPlot demands this text.
    assert "Permission is hereby granted" in script
    assert "Leon Sorokin" in script


def test_every_script_is_used() -> None:
    folder = Path(pages.__file__).parent / "scripts"
    assert {path.stem for path in folder.iterdir()} == set(pages.SCRIPTS)


def test_findings_are_explained_and_marked() -> None:
    sick = usual("sick", 8, epsilon=0.001)
    variance = sick.array("moving_variance").copy()
    variance[[1, 2, 5]] = -1
    arrays = {**{role: sick.array(role) for role in ROLES}, "moving_variance": variance}
    both = model(usual("well", epsilon=0.001), layer("sick", arrays, epsilon=0.001))
    (finding,) = [each for each in check(both) if each.rule == "BN005"]
    shown = Shown(of_model(both))
    (mark,) = [each for each in shown.data["marks"] if each["rule"] == "BN005"]
    assert (mark["row"], mark["runs"]) == (1, [1, 2, 5, 1])
    (rule,) = find_rules(["BN005"])
    assert {*rule.sections().values()} <= set(shown.all("dd"))
    assert any(finding.message in text for text in shown.all("li"))


def test_many_findings_of_a_rule_are_counted() -> None:
    arrays = {"moving_mean": np.zeros(2, np.float32), "moving_variance": np.float32([-1, 1])}
    shown = Shown(of_model(model(*(layer(f"bn{place}", arrays) for place in range(150)))))
    assert len([mark for mark in shown.data["marks"] if mark["rule"] == "BN005"]) == 150
    assert "and 50 more" in shown.all("li")


def test_two_models() -> None:
    old, new = usual("a", seed=1), usual("a", seed=2)
    shown = Shown(of_two(model(old, usual("gone")), model(new, usual("come", channels=4))))
    assert shown.data["kind"] == "difference"
    row = shown.data["rows"][0]
    for frame, of in enumerate((old, new)):
        for role, place in zip(ROLES, row["stored"][frame], strict=True):
            assert shown.array(place).tobytes() == of.array(role).tobytes()
    largest = np.abs(new.gamma.astype(np.float64) - old.gamma.astype(np.float64)).max()
    assert row["change"]["roles"][0][:2] == [8, largest]
    assert [each.get("only") for each in shown.data["rows"]] == [None, "old", "new"]


def test_a_run() -> None:
    models = [model(usual("bn", seed=seed)) for seed in range(4)]
    shown = Shown(of_run(*models))
    (row,) = shown.data["rows"]
    for frame, of in enumerate(models):
        assert shown.array(row["stored"][frame][0]).tobytes() == of["bn"].gamma.tobytes()
    means = shown.array(row["tracks"][0][0])
    expected = [of["bn"].gamma.astype(np.float64).mean() for of in models]
    np.testing.assert_allclose(means, expected, rtol=1e-12)


def test_some_checkpoints_of_a_long_run_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_NUMBERS", 3 * 4 * 8)
    entries = [(str(place), model(usual("bn", seed=place))) for place in range(9)]
    entries[4] = ("4", DamagedError("model-4", "is damaged"))
    frames = pages.Frames(entries, 9)
    passed = list(frames)
    assert [name for name, _ in passed] == [name for name, _ in entries]
    assert {number: name for number, (name, _) in frames.kept.items()} == {0: "0", 7: "8"}
    assert frames.newest is entries[8][1]


def test_measured_statistics() -> None:
    numbers = np.array([1.0, np.nan, 3])
    arrays = {"mean": numbers, "variance": numbers + 1, "divergence": numbers + 2}
    data = {"bn": ("shifted", arrays), "other": ("healthy", {"mean": numbers})}
    shown = Shown(of_model(model(usual("bn", 3)), measured=data))
    measured = shown.data["rows"][0]["measured"]
    assert measured["state"] == "shifted"
    assert shown.array(measured["mean"]).tobytes() == numbers.tobytes()
    assert shown.array(measured["divergence"]).tobytes() == (numbers + 2).tobytes()
    assert any(text.startswith("other: ") for text in shown.all("p"))


def test_odd_layers_and_no_layers() -> None:
    odd = model(
        layer("empty", {"moving_mean": np.zeros(0, np.float32), "moving_variance": np.zeros(0)}),
        layer("one", {"moving_mean": np.ones(1), "moving_variance": np.ones(1)}, epsilon=np.inf),
        layer("cube", {"moving_mean": np.ones((2, 3, 2)), "moving_variance": np.ones((2, 3, 2))}),
    )
    rows = Shown(of_model(odd)).data["rows"]
    assert [row["channels"] for row in rows] == [0, 1, 12]
    assert [row["shape"] for row in rows] == [None, None, [2, 3, 2]]
    assert rows[1]["epsilon"] == ["Infinity"]
    nothing = Shown(of_model(model()))
    assert nothing.data["rows"] == []
    assert nothing.all("p", id="headline") == ["no batch norm found"]


def test_the_page_of_a_large_network_is_small() -> None:
    """EfficientNetB4 has 96 layers with 62,600 channels."""
    layers = [usual(f"efficientnetb4/block{place}a_bn", 652, place) for place in range(96)]
    assert len(of_model(model(*layers)).encode()) < 1_500_000


def test_jinja_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BnstatError, match="pip install jinja2"):
        of_model(model(usual("bn")))


def test_every_colour_is_defined_in_both_themes() -> None:
    style = (Path(pages.__file__).parent / "style.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--\w+)\)", style))
    themes = re.findall(r"^:root[^{]*\{(.*?)\}", style, re.DOTALL | re.MULTILINE)
    assert [used <= set(re.findall(r"(--\w+):", theme)) for theme in themes] == [True, True]
