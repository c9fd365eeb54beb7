"""Memory that a process shares with the processes that it starts."""

from __future__ import annotations

import mmap
import os

from common.errors import UserError


class OutOfSharedMemory(UserError):
    """The machine, or the container, does not have the memory. The message says how much it takes."""


class SharedMemory:
    """A block of memory without a name, which child processes map by its descriptor.

    It is no file of /dev/shm, whose size containers limit (Docker: to 64 MiB). All of it is
    reserved here, since a page that is missing when it is first touched would end the process by
    SIGBUS. The kernel frees it with the last process that maps it.

    Args:
        size: bytes.
        descriptor: of a block that the parent made; None makes a new one.

    Raises:
        OutOfSharedMemory: where the memory cannot be reserved.
    """

    def __init__(self, size: int, descriptor: int | None = None):
        if descriptor is None:
            descriptor = os.memfd_create("dppo")
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                os.close(descriptor)
                raise OutOfSharedMemory(
                    f"{size / 2**20:,.0f} MiB of shared memory cannot be had ({error.strerror}): it"
                    f" holds two fragments, so give a smaller --batch_size or fewer --env_num, or"
                    f" give the container more memory"
                ) from None
        self.descriptor, self.size = descriptor, size
        self._map = mmap.mmap(descriptor, size)

    def view(self) -> memoryview:
        """The whole block, writable. It stays mapped while a view, or an array over it, lives."""
        return memoryview(self._map)

    def close(self) -> None:
        """Give up the descriptor and the map; views that are still held keep their memory."""
        os.close(self.descriptor)
        del self._map
