"""The Linux control groups (version 1 or 2) that bound this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")


def groups(controller: str, mount: Path = MOUNT, process: Path = PROCESS) -> Iterator[Path]:
    """Folders of the groups that bound the process: its own, and all those around it.

    In a container /proc may name the path on the host, which is not mounted. Then only the last
    folder, the mount itself, exists; it is the container's group.

    Args:
        controller: cpu or memory.
        mount: where the groups are mounted.
        process: the process's folder in /proc.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:  # a kernel without control groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one hierarchy for all controllers
            top = mount
        elif controller in controllers.split(","):
            top = mount / controller
        else:
            continue
        group = top / path.lstrip("/")
        yield from (f for f in (group, *group.parents) if f == top or top in f.parents)


def words(file: Path) -> list[str] | None:
    """The words in a group's file, or None where there is no such file (or group)."""
    try:
        return file.read_text().split()
    except OSError:
        return None
