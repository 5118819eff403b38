"""The user's Python code: imports by name or from a file, and errors in one line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from bnstat.errors import BnstatError, NotFoundError, first_line


def import_user_module(name: str, where: str) -> ModuleType:
    """Import a module, which may also be in the working directory.

    Args:
        name: the name of a module, or the path of a `.py` file.
        where: for messages.

    Raises:
        NotFoundError: the module does not exist.
        BnstatError: the module's code fails.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        if not os.path.isfile(name):
            raise NotFoundError(where, f"the file {name} does not exist")
        spec = importlib.util.spec_from_file_location("bnstat_data", name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except BnstatError:
        raise
    except ImportError as error:
        raise NotFoundError(where, f"cannot be imported: {first_line(error)}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BnstatError(where, f"cannot be imported: {described(error)}") from error
    finally:
        sys.path.remove(folder)


def described(error: BaseException) -> str:
    """Return the type and the first line of an error that the user's code raised."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name
