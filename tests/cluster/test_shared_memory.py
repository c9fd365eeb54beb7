from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.shared_memory import OutOfSharedMemory, SharedMemory, available_memory
from tests.conftest import control_groups


def test_two_maps_of_one_block_hold_the_same():
    memory = SharedMemory(1000)
    other = SharedMemory(1000, os.dup(memory.descriptor))
    memory.view()[10:13] = b"abc"
    assert bytes(other.view()[8:14]) == b"\0\0abc\0"
    memory.close()
    other.close()


def test_memory_that_the_machine_has_not_is_refused_with_its_size():
    with pytest.raises(OutOfSharedMemory, match=r"^1,073,741,824 MiB .* MiB of memory are free"):
        SharedMemory(2**50)


@pytest.mark.parametrize(
    ("lines", "files", "available"),
    [
        ("0::/job\n", {"job/memory.max": "3000", "job/memory.current": "1000"}, 2000),
        ("0::/job\n", {"memory.max": "3000", "memory.current": "4000"}, 0),
        (
            "0::/job\n",
            {
                "job/memory.max": "3000",
                "job/memory.current": "2900",
                "job/memory.stat": "anon 400\nactive_file 1500\ninactive_file 900\n",
            },
            2500,
        ),
        (
            "4:memory:/\n",
            {
                "memory/memory.limit_in_bytes": "3000",
                "memory/memory.usage_in_bytes": "2900",
                "memory/memory.stat": "inactive_file 0\ntotal_active_file 1000\ntotal_inactive_file 0\n",
            },
            1100,
        ),
        (
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": "3000", "memory/memory.usage_in_bytes": "1000"},
            2000,
        ),
    ],
)
def test_a_control_group_bounds_the_memory(tmp_path, lines, files, available):
    assert available_memory(*control_groups(tmp_path, lines, files)) == available


def test_without_a_bound_the_machine_has_the_memory(tmp_path):
    unbound = control_groups(tmp_path, "0::/\n", {"memory.max": "max", "memory.current": "4096"})
    assert available_memory(*unbound) > 2**20


def test_the_whole_block_is_reserved_at_once():
    memory = SharedMemory(10 * 2**20)
    assert os.fstat(memory.descriptor).st_blocks * 512 >= 10 * 2**20
    memory.close()


def test_closing_gives_back_descriptors_and_maps():
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("memfd:dppo")
        opened = 0  # of such memory: other threads open and close what they need
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                opened += "memfd:dppo" in os.readlink(descriptor)
        return opened, maps

    before = held()
    memory = SharedMemory(4096)
    array = np.frombuffer(memory.view(), np.uint8)
    assert held() > before
    memory.close()
    assert array.sum() == 0  # what is held can still be read
    del array
    assert held() == before
