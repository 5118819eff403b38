"""Other names for layers: a line `from,to` for each, as CSV.

`diff --map` writes such lines, `export --map` reads them. Names are written as everywhere: a
character that is not printable is an escape. Where a layer's tensors have names that do not
come of its own, as in an ONNX file, each has a line: `LAYER/gamma,TENSOR`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import IO, Final

from bnstat.compare import Difference
from bnstat.errors import DamagedError, NotFoundError
from bnstat.model import ROLES, BatchNorm, Model, printable

_LARGEST: Final = 1 << 26


def dump(difference: Difference, new: Model, file: IO[str]) -> None:
    """Write the names of the old model's layers, each with that of its pair in the new one.

    Layers of the old model that have no pair keep their names. Of an ONNX file, whose nodes take
    tensors of any name, those of the tensors are written as well.

    Args:
        difference: what was compared.
        new: the new model of the two.
        file: where to write.
    """
    writer = csv.writer(file, lineterminator="\n")
    for layer in difference.layers:
        writer.writerow((printable(layer.old), printable(layer.new)))
        variables = new[layer.new].variables if new.source.format == "onnx" else {}
        for role in (role for role in ROLES if role in variables):
            writer.writerow((printable(f"{layer.old}/{role}"), printable(variables[role].key)))
    for name in difference.removed:
        writer.writerow((printable(name), printable(name)))


def read(path: str, layers: Sequence[BatchNorm]) -> Mapping[str, str]:
    """The new names of some layers and tensors from a file, by their old ones.

    Raises:
        DamagedError: the file is no such CSV, or names a layer twice.
        NotFoundError: it names a layer that is not there.
        OSError: there is no such file, or it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise DamagedError(path, "is too large for a list of names")
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedError(path, f"is no CSV ({error})") from error
    olds = [f"{layer.name}/{role}" for layer in layers for role in ROLES]
    olds += [layer.name for layer in layers]
    spelt = {printable(old): old for old in olds}
    renamed: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        if not row:
            continue
        if len(row) != 2 or not row[1].strip():
            raise DamagedError(where, "is not FROM,TO", "bnstat diff OLD NEW --map writes such")
        old, new = row[0].strip(), row[1].strip()
        if old not in spelt:
            raise NotFoundError(where, f"no layer is called {printable(old[:200])!r}")
        if spelt[old] in renamed:
            raise DamagedError(where, f"{printable(old[:200])!r} is there a second time")
        renamed[spelt[old]] = new
    return renamed
