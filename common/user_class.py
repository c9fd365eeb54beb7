"""Classes of the user's own, named on the command line as `module:Class`.

The user's folder and this project both have modules, and some have the same names, such as
`model`. So that neither hides the other's, the modules of the folder worked in are
loaded into a package that the user never sees: `my_env.py` becomes the module `_own.my_env`.
Within it `import model` looks in the user's folder first, as it does where Python runs `my_env.py`
itself. Everything else, and every other module's imports, are Python's ordinary ones.

It does not reach `importlib.import_module("model")`, which asks for a module by its ordinary name,
nor modules that are on PYTHONPATH only: these are imported in the ordinary way.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.sources import ROOT

_PACKAGE = "_own"
LARGEST_FOLDER = 32 * 2**20  # bytes of source that a run sends to its actors


class _Loader(SourceFileLoader):
    """Runs a module of the user's folder with an `import` that looks in that folder first."""

    def exec_module(self, module: types.ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        own_import = functools.partial(_import, package)
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": own_import}
        super().exec_module(module)


_LOADERS = (
    (_Loader, importlib.machinery.SOURCE_SUFFIXES),
    (ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
)


class _Finder:
    """Finds the modules of the packages that stand for the user's folders."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if path is None or not hasattr(sys.modules.get(name.partition(".")[0]), "_is_users_folder"):
            return None
        specs = (FileFinder(str(folder), *_LOADERS).find_spec(name) for folder in path)
        return next(filter(None, specs), None)


def _package() -> types.ModuleType | None:
    """The package of the folder worked in; None in the project's own, where nothing can clash."""
    folder = os.getcwd()
    if os.path.samefile(folder, ROOT):
        return None
    number = 0
    while (package := sys.modules.get(name := f"{_PACKAGE}{number or ''}")) is not None:
        if package.__path__ == [folder]:
            return package
        number += 1
    package = types.ModuleType(name, f"The modules of {folder}.")
    package.__path__ = [folder]
    package.__dict__["_is_users_folder"] = True
    sys.modules[name] = package
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    return package


@functools.cache
def _is_own(package: str, name: str) -> bool:
    """Whether a top-level module is the user's.

    A folder without an `__init__.py` (such as `runs` or `data`) is so only where nothing else has
    its name.
    """
    spec: ModuleSpec | None = _Finder.find_spec(f"{package}.{name}", sys.modules[package].__path__)
    if spec is None:
        return False
    return spec.loader is not None or importlib.util.find_spec(name) is None


def _import(
    package: str,
    name: str,
    globals: Any = None,
    locals: Any = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """`__import__` of the modules of the user's folder, with its arguments."""
    top = name.partition(".")[0]
    if level or not _is_own(package, top):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    module = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
    return module if fromlist else sys.modules[f"{package}.{top}"]


def find(flag: str, name: str, unknown: type[UserError]) -> Any:
    """The object that `module:Class` names, in the folder worked in or on PYTHONPATH.

    Args:
        flag: the flag that it was given for, such as env.
        unknown: the error to raise.

    Raises:
        UserError: of the type `unknown`, where the module, the class in it, or another module that
            it imports cannot be found.
    """
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise unknown(
            f"{flag} {name!r} is not module:Class, such as my_module:MyClass for the class MyClass"
            f" of my_module.py"
        )
    package = _package()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for imports by name within the user's modules
    importlib.invalidate_caches()
    _is_own.cache_clear()
    full_name = module_name
    if package is not None and _is_own(package.__name__, module_name.partition(".")[0]):
        full_name = f"{package.__name__}.{module_name}"
    try:
        module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{full_name}.".startswith(f"{error.name}."):
            raise unknown(f"{flag} {name!r}: {module_name} cannot be imported: {error}") from error
        raise unknown(
            f"{flag} {name!r}: there is no module {module_name!r} here or on PYTHONPATH: name a"
            f" file of this folder without its .py"
        ) from None
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise unknown(f"{flag} {name!r}: {module_name} has no {class_name!r}") from None


def sources_in_use() -> dict[str, bytes]:
    """The user's source files, by their paths below the folder worked in.

    They are the regular, readable *.py files of the folder itself that can be imported, and those
    of the packages from which a module has been imported. They are none where `find` has found
    nothing in that folder.

    Raises:
        UserError: where they are more than `LARGEST_FOLDER` in all.
    """
    package = _package()
    if package is None:
        return {}
    folder = Path(package.__path__[0])
    prefix = f"{package.__name__}."
    used = {
        name[len(prefix) :].partition(".")[0] for name in sys.modules if name.startswith(prefix)
    }
    if not used:
        return {}
    paths = [path for path in folder.glob("*.py") if path.stem.isidentifier()]
    for name in sorted(used):
        paths += (folder / name).rglob("*.py")
    paths = [path for path in paths if path.is_file() and os.access(path, os.R_OK)]
    size = sum(path.stat().st_size for path in paths)
    if size > LARGEST_FOLDER:
        raise UserError(
            f"the {len(paths)} *.py files of {folder} are {size / 2**20:.0f} MiB, but at most"
            f" {LARGEST_FOLDER / 2**20:.0f} MiB are sent to remote actors: start the run in a"
            f" folder that holds the environment's own modules only"
        )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
