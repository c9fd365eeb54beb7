"""The number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int:
    """Cores of this process: its affinity, bounded by the CPU quotas of its control groups.

    Batch systems pin a job to some cores of a node, and containers give a share of all of them;
    `os.cpu_count` knows of neither. A quota of 1.5 cores counts as 2, since threads beyond it wait.

    Args:
        cgroups: where the control groups (version 1 or 2) are mounted.
        process: the process's folder in /proc.
    """
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _groups(cgroups, process) if (quota := _quota(folder))]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _groups(cgroups: Path, process: Path) -> list[Path]:
    """The process's own control groups and all groups around them: a quota binds whoever is below."""
    folders = []
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:  # no /proc, hence no control groups
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one hierarchy for every controller
            mount = cgroups
        elif "cpu" in controllers.split(","):
            mount = cgroups / "cpu"
        else:
            continue
        # inside a container the path may be the host's, which is not mounted: then only the
        # mount itself exists, and it is the container's group
        group = mount / path.lstrip("/")
        folders += [f for f in (group, *group.parents) if f == mount or mount in f.parents]
    return folders


def _quota(group: Path) -> float | None:
    """The CPU quota [cores] of one control group, or None where it has none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:  # not mounted here, or a root group, which has no quota
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
