"""The weights in a `.keras`: the bytes of one member of a zip, and its checksum."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping

from bnstat.formats.contents import Contents
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.mending.writers import hdf5, zip_member
from bnstat.mending.writers.patches import patch
from bnstat.model import Array
from bnstat.storage.local import LocalFile


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write variables; see `bnstat.mending.writers.write`."""
    path = contents.source.path
    if os.path.isdir(path):
        if contents.source.checkpoint is None:
            hdf5.write(contents, arrays)
            return
        path = os.path.join(path, contents.source.checkpoint)
    done, others = patch(contents, arrays)
    zip_member.renew_checksums(path, [place.offset for place in done])
    if others:
        _write_members(path, {key: arrays[key] for key in others})


def _write_members(path: str, arrays: Mapping[str, Array]) -> None:
    """Take the members with those arrays out, write to them, and put them back."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".h5")]
    left = dict(arrays)
    member = path + ".member"
    for name in names:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(name) as packed,
            open(member, "wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        held: dict[str, Array] = {}
        if is_hdf5(file := LocalFile(member)):
            held = {key: left.pop(key) for key in Hdf5(file).variables.keys() & left.keys()}
        if held:
            hdf5.write_by_library([member], held)
            zip_member.replace(path, name, member)
        os.unlink(member)
    hdf5.write_by_library([], left)
