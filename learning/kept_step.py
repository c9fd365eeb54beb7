"""Compiled steps kept on disk, so that the next run has its step without torch's compiler.

To import the compiler, and to have it find in its own cache what it compiled before, takes seconds
of every start and 150 MB of memory. What it leaves behind is one library with one function, from a
list of tensors to one tensor. This module keeps that library, and which tensors it takes:

    NAME.so     the library, a Python module
    NAME.json   its inputs in their order, by name or by place in the batch, and the library's hash.
                It was written, or changed, when the step was last used

NAME is a hash of all that decides what is compiled (`name_of`). Both lie in a folder that only this
user can write. The steps that were used last stay there, the others are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.compiled import refuse_others
from common.sources import digest, sources
from learning.native import Native

_MODULE = "inductor_entry_cpp"  # as torch's compiler calls the module
# as the user has named it: torch's compiler names it too, once it is imported
_CACHE = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
_KEPT = 192  # libraries of some 300 KB each; a run has three

Inputs = list[str | int]  # of a function: names of tensors, and places in the batch


class Kept(NamedTuple):
    """A library's function, and what it takes."""

    native: Native
    inputs: Inputs


def name_of(function: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The name of a step: a hash of all that decides what is compiled.

    Args:
        function: its name.
        settings: all that it may read, as JSON can hold them.
        tensors: what it reads and changes, by name.
    """
    shapes = {name: [str(t.dtype), [*t.shape], [*t.stride()]] for name, t in tensors.items()}
    # other code for the same kernels may be asked for by these
    variables = {name: value for name, value in os.environ.items() if name.startswith("TORCH")}
    variables.pop("TORCHINDUCTOR_CACHE_DIR", None)
    parts = [function, settings, shapes, variables, torch.get_num_threads(), *_machine()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _machine() -> list[str]:
    """The project's sources, the packages and the processor that code is compiled for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    capability = torch.backends.cpu.get_cpu_capability()
    packages = [torch.__version__, torch.__file__, sys.version]
    return [digest(sources()), *packages, platform.machine(), capability, flags]


def load(name: str) -> Kept | None:
    """The step of a name; None where none is kept, or what is kept is damaged."""
    folder = place()
    try:
        refuse_others(folder)
        record = json.loads((folder / f"{name}.json").read_text())
        library = folder / f"{name}.so"
        if hashlib.sha256(library.read_bytes()).hexdigest() != record["sha256"]:
            return None
        with contextlib.suppress(OSError):  # a disk that cannot be written can be read
            os.utime(folder / f"{name}.json")
        return Kept(Native(_module(library)), record["inputs"])
    except (OSError, ImportError, ValueError, TypeError, LookupError):
        return None  # it is compiled again, and kept anew


def keep(name: str, native: Native, inputs: Inputs) -> None:
    """Keep a step that torch has compiled, if the disk lets it: otherwise the next run compiles too."""
    folder = place()
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        refuse_others(folder)
        content = Path(str(native.module.__file__)).read_bytes()
        record = {"inputs": inputs, "sha256": hashlib.sha256(content).hexdigest()}
        _write(folder / f"{name}.so", content)
        _write(folder / f"{name}.json", json.dumps(record).encode())
        _remove_old(folder)
    except OSError:
        return


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: other runs may write it at the same time."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with open(descriptor, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def _remove_old(folder: Path) -> None:
    """Remove all steps but those that were used last, and what writers that were killed have left.

    A process that has loaded a step does not need its file any more; one that is about to load it
    compiles it instead.
    """
    used: dict[str, float] = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            used[path.stem] = max(used.get(path.stem, 0.0), path.stat().st_mtime)
    for name in sorted(used, key=lambda name: used[name])[:-_KEPT]:
        for suffix in (".json", ".so", ""):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)


def place() -> Path:
    """Where steps are kept: a folder of this user's own, or within torch's cache where that was named."""
    if _CACHE is not None:
        return Path(_CACHE) / "kept_steps"
    return Path(tempfile.gettempdir()) / f"kept_steps_{os.geteuid()}"


def _module(library: Path) -> ModuleType:
    """A library's module.

    Raises:
        ImportError: where it cannot be loaded.
    """
    spec = importlib.util.spec_from_file_location(f"{library.stem}.{_MODULE}", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
