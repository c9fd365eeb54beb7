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
                    f"{_mib(size)} of shared memory are needed for two fragments, and"
                    f" {_mib(available)} of memory are free: give a smaller --batch_size or fewer"
                    f" --env_num, or more memory"
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

    Args:
        mount, process: see `common.cgroups.groups`.
    """
    available = psutil.virtual_memory().available
    for group in groups("memory", mount, process):
        limit = words(group / "memory.max") or words(group / "memory.limit_in_bytes")
        usage = words(group / "memory.current") or words(group / "memory.usage_in_bytes")
        if limit and usage and limit != ["max"]:
            available = min(available, max(0, int(limit[0]) - int(usage[0])))
    return available


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
