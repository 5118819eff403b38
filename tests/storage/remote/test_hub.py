"""Models on the Hugging Face hub, by huggingface_hub's file system against a server here."""

from __future__ import annotations

import os

import pytest

import bnstat
from bnstat.errors import BnstatError, NotFoundError
from bnstat.scanning.scan import ScanOptions
from bnstat.storage.access import Access
from bnstat.storage.find import find
from tests.builders import hub
from tests.builders.server import Server
from tests.scanning.stores import scanned
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import same

ROOT = f"hf://{hub.REPOSITORY}"


@pytest.fixture
def options(digits: Server) -> dict[str, object]:
    pytest.importorskip("huggingface_hub", reason="the driver for hf:// is not installed")
    digits.other = hub.answer
    return {"endpoint": digits.url, "token": False}


@pytest.mark.parametrize(
    "place",
    ["run", "run/model-100", "run/model-100.index", "saved_model", "saved_model/variables"],
)
def test_a_model_is_read_as_on_disk(digits: Server, options: dict[str, object], place: str) -> None:
    far = bnstat.load(f"{ROOT}/{place}", eager=True, storage_options=options)
    same(far, bnstat.load(DATA / place))
    assert len(digits.asked) <= 12
    assert any(asked.range for asked in digits.asked)


def test_what_is_not_there(options: dict[str, object]) -> None:
    with pytest.raises(NotFoundError):
        bnstat.load(f"{ROOT}/nothing", storage_options=options)
    with pytest.raises(BnstatError) as caught:
        bnstat.load("hf://somebody/else/model", storage_options=options)
    assert os.linesep not in str(caught.value)


def test_a_scan(digits: Server, options: dict[str, object]) -> None:
    far = scanned(ROOT, options=ScanOptions(storage_options=options))
    assert [record.layers for record in far] == [record.layers for record in scanned(DATA)]
    trees = [asked.path for asked in digits.asked if "/tree/" in asked.path]
    assert len(trees) == 1
    folder = find(f"{ROOT}/run", Access(options)).folder
    assert folder is not None
    assert all(entry.tag for entry in folder.entries())
