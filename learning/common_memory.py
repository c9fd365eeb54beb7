"""Memory that the trainers of one machine map, for sums and messages.

A gradient step of a small network takes a few hundred microseconds, and so does a message through a
socket. In memory it takes as long as its numbers take to be copied, once the last trainer is there.

The memory is a file, which has a name only until all trainers have opened it: to open memory without
a name, a process would have to look into another one, and sandboxes refuse that.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from common.compiled import njit
from common.errors import TrainerLost, UserError

_LINE = 64  # bytes of a line of the processor's cache: two trainers that write share none
_SPINS = 20_000  # looks at memory before the operating system is asked for others who want the core
_YIELDS = 200  # in which others have been let onto the core, before this trainer sleeps in between
_SLEEPS_S = 50e-6, 1e-3  # at first, and at most
_LOOKS_EVERY_S = 0.1  # for trainers that are gone
_MEMORY = "/dev/shm"  # a folder whose files are in memory; containers have little room there
_LONGEST_PATH = 4096

Gather = Callable[[bytes], list[bytes]]


class NoCommonMemory(UserError):
    """The trainers of this machine cannot have a file in common. The message says what to do."""


class CommonMemory:
    """What each trainer puts down, as all of them read it.

    Each trainer has a slot of its own. It puts its numbers there, says that it has done so, waits
    until all have said so, and reads the slots. There are two sets of slots, used in turn: whoever
    puts something into the first set again has seen all trainers at the second, so they have read
    the first.

    All trainers make theirs at the same time.

    Args:
        rank: this trainer's number.
        size: how many there are.
        capacity: how many bytes a slot has room for.
        gather: gives the messages of all trainers, which are equally long, in the order of ranks.

    Raises:
        NoCommonMemory: where there is no room for it.
    """

    def __init__(self, rank: int, size: int, capacity: int, gather: Gather):
        self.rank, self.capacity, self._size = rank, capacity, size
        slot = -(-capacity // _LINE) * _LINE
        length = size * (_LINE + 2 * slot)
        self._file = _opened_by_all(rank, length, gather)
        memory = mmap.mmap(self._file, length)
        # how often a trainer has put something down, one number in a line
        self._arrived = np.frombuffer(memory, np.int64, size * _LINE // 8)
        self._slots = np.frombuffer(memory, np.uint8, offset=size * _LINE).reshape(2, size, slot)
        self._floats = {np.dtype(kind): self._slots.view(kind) for kind in (np.float32, np.float64)}
        self._uses = 0

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor on the CPU, float32 or float64, by its sum over all trainers.

        It is added in the order of ranks: all get the same bits.

        Raises:
            TrainerLost: if the process of another trainer has ended.
        """
        numbers = tensor.view(-1).numpy()
        slots = self._floats[numbers.dtype]
        self._exchange(numbers, slots)
        _add(numbers, slots[self._uses % 2])

    def gather(self, message: bytes) -> list[bytes]:
        """The messages of all trainers, which are equally long, in the order of ranks.

        Raises:
            TrainerLost: if the process of another trainer has ended.
        """
        self._exchange(np.frombuffer(message, np.uint8), self._slots)
        return [slot[: len(message)].tobytes() for slot in self._slots[self._uses % 2]]

    def _exchange(self, numbers: np.ndarray, slots: np.ndarray) -> None:
        """Put numbers down, and wait until all trainers have."""
        self._uses += 1
        arrived = self._arrived.ctypes.data
        _put(numbers, slots[self._uses % 2, self.rank], arrived + self.rank * _LINE, self._uses)
        for _ in range(_YIELDS):
            if _all_have_arrived(arrived, self._size, self._uses):
                return
            os.sched_yield()
        sleep, most = _SLEEPS_S
        looked = time.monotonic()
        while not _all_have_arrived(arrived, self._size, self._uses):
            time.sleep(sleep)
            sleep = min(1.1 * sleep, most)
            if time.monotonic() - looked > _LOOKS_EVERY_S:
                looked = time.monotonic()
                self._refuse_lost()

    def _refuse_lost(self) -> None:
        for rank in range(self._size):
            if rank == self.rank or not _has_left(self._file, rank):
                continue
            # it may have put its numbers down, and then have closed the memory
            if self._arrived[rank * _LINE // 8] < self._uses:
                raise TrainerLost(
                    f"another trainer is gone (the process of trainer {rank} has ended)"
                )

    def close(self) -> None:
        """Give up the file. Another trainer that waits for this one counts it as lost from now on."""
        os.close(self._file)


def _opened_by_all(rank: int, length: int, gather: Gather) -> int:
    """The descriptor of a new file of zeros, which all trainers have opened.

    Each of them holds a lock on one byte, that of its rank, until it closes the file or its process
    ends. Whoever is there when another trainer is lost takes the file's name away.
    """
    mine = _new_path(length) if rank == 0 else ""
    path = gather(mine.encode().ljust(_LONGEST_PATH, b"\0"))[0].rstrip(b"\0").decode()
    file = -1
    try:
        if rank == 0:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.posix_fallocate(file, 0, length)  # a page that is not there would end the process
        gather(b"made")
        if rank != 0:
            file = os.open(path, os.O_RDWR)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        gather(b"open")
    except OSError as error:
        raise NoCommonMemory(
            f"the trainers cannot have {path} of {length:,} bytes in common ({error.strerror}): give"
            f" its folder more room, or name another folder by TMPDIR"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # another trainer was faster
            os.unlink(path)
    return file


def _new_path(length: int) -> str:
    """Where a file of so many bytes has room: in memory, or else in the folder of temporary files."""
    folder = tempfile.gettempdir()
    with contextlib.suppress(OSError):  # not every system has it
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= length:
            folder = _MEMORY
    return f"{folder}/dppo-trainers-{os.getpid()}-{secrets.token_hex(8)}"


def _has_left(file: int, rank: int) -> bool:
    """Whether a trainer has closed a file that all had opened, or its process has ended."""
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, rank)
    except (BlockingIOError, PermissionError):  # systems differ in how they say that it is locked
        return False
    return True


@njit(nogil=True)
def _put(numbers: np.ndarray, slot: np.ndarray, arrived: int, count: int) -> None:
    for place in range(len(numbers)):
        slot[place] = numbers[place]
    _store(arrived, count)


@njit(nogil=True)
def _all_have_arrived(arrived: int, trainers: int, count: int) -> bool:
    for trainer in range(trainers):
        spins = 0
        while _load(arrived + trainer * _LINE) < count:
            spins += 1
            if spins == _SPINS:
                return False
    return True


@njit(nogil=True)
def _add(numbers: np.ndarray, slots: np.ndarray) -> None:
    for place in range(len(numbers)):
        numbers[place] = slots[0, place]
    for trainer in range(1, len(slots)):
        slot = slots[trainer]
        for place in range(len(numbers)):
            numbers[place] += slot[place]


def _typed_load(typing: Any, address: Any) -> Any:
    """The int64 at an address; what another process has written before it is seen after this."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return numba.types.int64(numba.types.int64), generate


_load: Any = intrinsic(_typed_load)


def _typed_store(typing: Any, address: Any, value: Any) -> Any:
    """Put an int64 at an address; another process that sees it sees what was written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store_atomic(arguments[1], pointer, "release", 8)
        return context.get_dummy_value()

    return numba.types.void(numba.types.int64, numba.types.int64), generate


_store: Any = intrinsic(_typed_store)
