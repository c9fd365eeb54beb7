"""Memory that a process shares with the processes that it starts."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil

from common.cgroups import MOUNT, PROCESS, groups, words
from common.errors import UserError


class OutOfSharedMemory(UserError):
    """The machine, or the container, does not have the memory. The message says how much it takes."""


class SharedMemory:
    """A block of memory without a name, which child processes map by its descriptor.

    It is no file of /dev/shm, whose size containers limit (Docker: to 64 MiB). All of it is
    reserved here: a page that cannot be had when it is first touched would end the process by
    SIGBUS. The kernel frees the block with the last process that maps it.

    Args:
        size: bytes.
        descriptor: of a block that the parent made; None makes a new one.

    Raises:
        OutOfSharedMemory: where there is not as much memory.
    """

    def __init__(self, size: int, descriptor: int | None = None):
        if descriptor is None:
            available = available_memory()
            if size > available:  # to reserve it would wake the kernel's OOM killer
                raise OutOfSharedMemory(
                    f"{_mib(size)} of shared memory are needed, and {_mib(available)} of memory are"
                    f" free: give fewer --env_num or a smaller --batch_size, which make fragments"
                    f" smaller, or more memory"
                )
            descriptor = os.memfd_create("dppo")
            os.posix_fallocate(descriptor, 0, size)
        self.descriptor, self.size = descriptor, size
        self._map = mmap.mmap(descriptor, size)

    @classmethod
    def of(cls, descriptor: int) -> SharedMemory:
        """The block that a parent made, by the descriptor that it passed on."""
        return cls(os.fstat(descriptor).st_size, descriptor)

    def view(self) -> memoryview:
        """The whole block, writable. It stays mapped while a view, or an array over it, lives."""
        return memoryview(self._map)

    def close(self) -> None:
        """Give up the descriptor and the map; views that are still held keep their memory."""
        os.close(self.descriptor)
        del self._map


def available_memory(mount: Path = MOUNT, process: Path = PROCESS) -> int:
    """Bytes of memory that this process may still take: the machine's, or its control groups'.

    A group's usage counts the kernel's copies of files, which it gives up when memory is needed.

    Args:
        mount, process: see `common.cgroups.groups`.
    """
    available = psutil.virtual_memory().available
    for group in groups("memory", mount, process):
        limit = words(group / "memory.max") or words(group / "memory.limit_in_bytes")
        usage = words(group / "memory.current") or words(group / "memory.usage_in_bytes")
        if limit and usage and limit != ["max"]:
            used = int(usage[0]) - _cached_files(group)
            available = min(available, max(0, int(limit[0]) - max(0, used)))
    return available


def _cached_files(group: Path) -> int:
    """Bytes of files that the kernel keeps for a group, and can give up."""
    statistics = words(group / "memory.stat") or []
    values = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True))
    kinds = ("inactive_file", "active_file")
    if "total_inactive_file" in values:  # version 1, where the plain names leave out inner groups
        kinds = ("total_inactive_file", "total_active_file")
    return sum(values.get(kind, 0) for kind in kinds)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
