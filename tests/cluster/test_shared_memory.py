from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cluster.shared_memory import OutOfSharedMemory, SharedMemory


def test_two_maps_of_one_block_hold_the_same():
    memory = SharedMemory(1000)
    other = SharedMemory(1000, os.dup(memory.descriptor))
    memory.view()[10:13] = b"abc"
    assert bytes(other.view()[8:14]) == b"\0\0abc\0"
    memory.close()
    other.close()


def test_memory_that_the_machine_has_not_is_refused_with_its_size():
    with pytest.raises(OutOfSharedMemory, match=r"1,073,741,824 MiB .* smaller --batch_size"):
        SharedMemory(2**50)


def test_the_whole_block_is_reserved_at_once():
    memory = SharedMemory(10 * 2**20)
    assert os.fstat(memory.descriptor).st_blocks * 512 >= 10 * 2**20
    memory.close()


def test_closing_gives_back_descriptors_and_maps():
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("memfd:dppo")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    before = held()
    memory = SharedMemory(4096)
    array = np.frombuffer(memory.view(), np.uint8)
    assert held() > before
    memory.close()
    assert array.sum() == 0  # what is held can still be read
    del array
    assert held() == before
