from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.cores import usable_cores
from tests.conftest import ROOT, control_groups

HERE = len(os.sched_getaffinity(0))


V1 = {"cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("lines", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),  # a fifth of a core is one thread
        ("0::/\n", {"cpu.max": "max 100000\n"}, HERE),
        ("0::/job/step\n", {"job/cpu.max": "100000 100000", "job/step/cpu.max": "max 100000"}, 1),
        ("0::/docker/a\n", {"cpu.max": "100000 100000\n"}, 1),  # the host's path, not mounted here
        ("4:memory:/\n2:cpu:/\n", V1 | {"cpu/cpu.cfs_quota_us": "100000\n"}, 1),
        ("2:cpu,cpuacct:/\n", V1 | {"cpu/cpu.cfs_quota_us": "-1\n"}, HERE),
        ("0::/\n", {}, HERE),
    ],
)
def test_a_quota_of_any_group_around_the_process_bounds_the_cores(tmp_path, lines, files, cores):
    assert usable_cores(*control_groups(tmp_path, lines, files)) == cores


def test_one_and_a_half_cores_are_two(tmp_path):
    mount, process = control_groups(tmp_path, "0::/\n", {"cpu.max": "150000 100000\n"})
    assert usable_cores(mount, process) == min(2, HERE)


def test_a_process_that_is_bound_to_one_core_has_one():
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{core}]);"
        "from common.cores import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n"
