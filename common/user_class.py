"""Objects of the user's own, named on the command line as `module:Class`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from common.errors import UserError


def find(flag: str, name: str, unknown: type[UserError]) -> Any:
    """What `module:Class` names, in the user's folder or on PYTHONPATH.

    Args:
        flag: what it was given for, such as env.
        unknown: raised where the module, or the class in it, cannot be found.
    """
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the user's module was found; something that it imports is missing
        raise unknown(
            f"{flag} {name!r}: there is no module {module_name!r} here or on PYTHONPATH: name a"
            f" file of this folder without its .py"
        ) from None
    except AttributeError:
        raise unknown(f"{flag} {name!r}: {module_name} has no {class_name!r}") from None
