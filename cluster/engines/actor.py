"""The part of an xparl actor that the learner sends: the host, and the modules that it needs."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import wire
from common.sources import ROOT

if TYPE_CHECKING:
    from cluster.session import Session

MUST_MATCH = ("numpy", "torch", "gymnasium", "mujoco", "ale-py")


def versions() -> dict[str, str]:
    """What learner and actors must agree on, for a run to be the same anywhere."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in MUST_MATCH:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


class ActorSession:
    """A `Session` that refuses a learner whose packages are others than this machine's."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def handle(self, message: bytes) -> bytes:
        """Answer one message."""
        if self._session is None:
            meta, _ = wire.unpack(message)
            here = versions()
            differing = [
                f"{name} {here.get(name)} (the learner has {theirs})"
                for name, theirs in meta["versions"].items()
                if here.get(name) != theirs
            ]
            if differing:
                return wire.pack({"error": f"this worker has {', '.join(differing)}: install the"
                                           f" project's requirements.txt there"})  # fmt: skip
            from cluster.session import Session  # only now: it imports these packages

            self._session = Session()
        return self._session.handle(message)


def make_host() -> type:
    """The remote class. Its made-up module makes PARL send it by value, wherever it is used."""

    class Host:
        """Imports the project from a folder of this version's own, made at its first use.

        What is compiled, by Python and by numba, then lies there for the next actors.
        """

        def __init__(self, version: str, sources: dict[str, bytes]):
            import shutil
            import sys
            import tempfile
            from pathlib import Path

            home = Path.home() / ".cache" / "dppo" / version
            if not home.exists():
                home.parent.mkdir(parents=True, exist_ok=True)
                fresh = Path(tempfile.mkdtemp(dir=home.parent))
                for name, content in sources.items():
                    (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                    (fresh / name).write_bytes(content)
                try:
                    fresh.rename(home)
                except OSError:
                    shutil.rmtree(fresh)
                    if not home.exists():  # otherwise another actor was first
                        raise
            sys.path.insert(0, str(home))
            self.session: Any = None

        def call(self, message: bytes) -> bytes:
            if self.session is None:
                import importlib

                self.session = importlib.import_module("cluster.engines.actor").ActorSession()
            return self.session.handle(message)

    Host.__module__ = "dppo_actor_host"
    return Host


def modules_worked_in() -> bytes:
    """A user's environments, as PARL takes files: the modules of the folder worked in.

    Where that is the project's own, they are among its sources.
    """
    import cloudpickle

    found = [] if Path.cwd() == ROOT else Path.cwd().glob("*.py")
    own = {path.name: path.read_bytes() for path in found}
    return cloudpickle.dumps({"python_files": {}, "other_files": own, "empty_subfolders": set()})
