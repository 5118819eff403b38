"""Data from the user's own code: `module:function`, or `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from types import ModuleType

from bnstat.errors import BnstatError, NotFoundError
from bnstat.mending.estimating.data.batches import Source, Wanted
from bnstat.mending.estimating.data.memory import of_object, reason_of


def of_code(spec: str, inputs: Mapping[str, Wanted]) -> Source:
    """What a function gives: arrays, or batches.

    Args:
        spec: where the function is; modules are looked for in the working directory too.
        inputs: the model's, where they are known.

    Raises:
        NotFoundError: there is no such module or function.
        BnstatError: it fails.
    """
    place, _, name = spec.rpartition(":")
    module = _module(place, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise NotFoundError(spec, f"there is no function {name!r} in {place}")
    try:
        return of_object(function, inputs, spec)
    except BnstatError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BnstatError(spec, reason_of(error)) from error


def _module(place: str, spec: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not os.path.isfile(place):
            raise NotFoundError(spec, f"there is no file {place}")
        found = importlib.util.spec_from_file_location("bnstat_data", place)
        if found is None or found.loader is None:
            raise NotFoundError(spec, f"{place} is no Python file")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except BnstatError:
        raise
    except ModuleNotFoundError as error:
        raise NotFoundError(spec, f"cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BnstatError(spec, f"cannot be imported: {reason_of(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    return module
