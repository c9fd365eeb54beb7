"""The number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from common.cgroups import MOUNT, PROCESS, groups, words


def usable_cores(mount: Path = MOUNT, process: Path = PROCESS) -> int:
    """Cores of this process: its affinity, bounded by the CPU quotas of its control groups.

    Batch systems pin a job to some cores of a node, and containers give a share of all of them;
    `os.cpu_count` knows of neither. A quota of 1.5 cores counts as 2.

    Args:
        mount, process: see `common.cgroups.groups`.
    """
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for group in groups("cpu", mount, process) if (quota := _quota(group))]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _quota(group: Path) -> float | None:
    """The CPU quota [cores] of one control group, or None where it has none."""
    limit = words(group / "cpu.max")  # version 2: "QUOTA PERIOD", in microseconds
    if limit is None:
        limit = [
            *(words(group / "cpu.cfs_quota_us") or ["-1"]),
            *(words(group / "cpu.cfs_period_us") or ["100000"]),
        ]
    quota, period = limit
    return None if quota in ("max", "-1") else int(quota) / int(period)
