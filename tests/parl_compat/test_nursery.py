"""Jobs are forks of a process that has done their imports."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from cluster.engines.xparl_master import cluster_cpus
from parl_compat import local_clusters
from tests.conftest import cluster_processes, processes_mentioning, wait_until

pytestmark = [pytest.mark.xdist_group("xparl"), pytest.mark.slow]  # these share one cluster


def jobs_of(cluster: str) -> set[int]:
    members = cluster_processes(int(cluster.partition(":")[2]))
    found = local_clusters.cluster_processes()
    return {p.process.pid for p in found if p.script == "job.py" and p.process.pid in members}


def nursery_of(cluster: str) -> int:
    members = cluster_processes(int(cluster.partition(":")[2]))
    (nursery,) = set(processes_mentioning("parl_compat.jobs")) & set(members)
    return nursery


def test_a_job_has_what_an_actor_imports_before_it_has_an_actor(xparl_cluster):
    wait_until(lambda: len(jobs_of(xparl_cluster)) == 8, 60, "two jobs for each CPU")
    for job in jobs_of(xparl_cluster):
        maps = {mapping.path for mapping in psutil.Process(job).memory_maps()}
        assert any("libtorch_cpu" in path for path in maps)


def test_a_worker_replaces_also_the_jobs_that_it_keeps_in_reserve(xparl_cluster):
    wait_until(lambda: len(jobs_of(xparl_cluster)) == 8, 60, "two jobs for each CPU")
    before = jobs_of(xparl_cluster)
    newest = sorted(before, key=lambda pid: psutil.Process(pid).create_time())[4:]
    for job in newest:
        os.kill(job, signal.SIGKILL)
    wait_until(lambda: len(jobs_of(xparl_cluster) - before) == 4, 60, "four new jobs")
    assert jobs_of(xparl_cluster) >= before - set(newest)
    assert cluster_cpus(xparl_cluster, 4) == (4, 4)


def test_a_worker_whose_nursery_is_killed_has_another_and_loses_no_cpu(xparl_cluster):
    before, nursery = jobs_of(xparl_cluster), nursery_of(xparl_cluster)
    os.kill(nursery, signal.SIGKILL)
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(jobs_of(xparl_cluster) - before) == 1, 60, "the worker's new job")
    assert nursery_of(xparl_cluster) != nursery
    assert jobs_of(xparl_cluster) >= before - {min(before)}  # the others are not its to end
    assert cluster_cpus(xparl_cluster, 4) == (4, 4)
