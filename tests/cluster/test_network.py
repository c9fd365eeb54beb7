"""What happens at a cluster of several machines when the network between them is cut.

The machines are network namespaces: see `benchmarks.namespaces`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.namespaces import Cluster, Network, NoNamespaces
from cluster.engines.xparl import XparlEngine
from parl_compat import keys
from parl_compat.shim import HOST_VARIABLE
from tests.cluster.test_supervisor import REPLACED_S, Watched, lost_columns
from tests.conftest import wait_until

pytestmark = [pytest.mark.xdist_group("network"), pytest.mark.slow]

WORKERS = ("one", "two")
GONE_S = 15.0  # after which a machine that is gone is done without


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A master, and two machines with two CPUs each."""
    with _network("head", *WORKERS) as network:
        folder = tmp_path_factory.mktemp("network")
        cluster = Cluster(network, "head", folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(keys.KEY_VARIABLE, str(cluster.key))
            patch.setenv("FAULTS_FOLDER", str(folder))
            patch.setenv(HOST_VARIABLE, network.addresses["head"])  # which the engine sets too
            cluster.start_master()
            for machine in WORKERS:
                cluster.connect(machine, 2)
            wait_until(lambda: cluster.cpus() == (4, 4), 60, "4 free CPUs")
            with network.inside("head"):
                yield cluster


def _network(*machines: str) -> Network:
    try:
        return Network(*machines)
    except NoNamespaces as error:
        pytest.skip(f"network namespaces cannot be made: {error}")


def collect_all(run: Watched, seconds: float) -> None:
    """Collect until no sampler is missing."""
    start = time.monotonic()
    while lost_columns(run.collect()):
        assert time.monotonic() - start < seconds, run.told


@pytest.fixture(scope="module")
def run(cluster) -> Iterator[Watched]:
    """Two samplers, for which CPUs were looked for while all of them were cut off."""
    for machine in WORKERS:
        cluster.network.cut(machine)
    settings = {"xparl_addr": cluster.address, "wait_for_cpus": 0.0, "sampler_timeout": 60.0}
    with Watched(engine_name="xparl", **settings) as run:
        wait_until(lambda: cluster.cpus()[0] == 0, 20, "the master to have given all CPUs")
        for machine in WORKERS:
            cluster.network.mend(machine)
        collect_all(run, 60)
        yield run


def test_no_cpu_is_lost_that_was_given_beyond_a_cut(run, cluster):
    wait_until(lambda: cluster.cpus() == (2, 4), 30, "the other CPUs to be free again")
    assert run.pool.restarts == 0


def test_a_short_cut_is_waited_for(run, cluster):
    for machine in WORKERS:
        cluster.network.cut(machine)
    run.pool.request(run.weights, run.update, False)
    run.update += 1
    time.sleep(2.0)
    for machine in WORKERS:
        cluster.network.mend(machine)
    lost = run.pool.rows_lost
    assert lost_columns(run.pool.gather()) == []
    assert (run.pool.restarts, run.pool.rows_lost) == (0, lost)


def test_the_samplers_of_a_machine_that_is_gone_move(run, cluster):
    engine = run.pool.engine
    assert isinstance(engine, XparlEngine)
    host = str(engine._actors[0].placement.address).partition(":")[0]
    gone = next(m for m in WORKERS if cluster.network.addresses[m] == host)
    lost = run.pool.rows_lost
    start = time.monotonic()
    cluster.network.take_down(gone)
    run.pool.request(run.weights, run.update, False)
    run.update += 1
    while not run.pool.restarts:  # it is noticed while nobody waits for it
        assert time.monotonic() - start < GONE_S
        time.sleep(0.1)
    columns = lost_columns(run.pool.gather())
    assert {0, 1} <= set(columns)
    assert run.pool.rows_lost - lost == 16 * len(columns)
    collect_all(run, 4 * REPLACED_S)  # most of it is imports, on two cores
    hosts = {str(actor.placement.address).partition(":")[0] for actor in engine._actors.values()}
    assert host not in hosts


def test_a_worker_that_was_cut_off_joins_again(tmp_path, monkeypatch):
    seconds = {"HEARTBEAT_INTERVAL_S": 1, "HEARTBEAT_RCVTIMEO_S": 3}
    with _network("head", "one") as network:
        cluster = Cluster(network, "head", tmp_path, **seconds)
        monkeypatch.setenv(keys.KEY_VARIABLE, str(cluster.key))
        cluster.start_master()
        worker = cluster.connect("one", 1)
        wait_until(lambda: cluster.cpus() == (1, 1), 60, "its CPU")
        network.cut("one")
        # its jobs are gone: nobody could free their CPUs
        wait_until(lambda: len(network.processes("one")) == 1, 20, "the worker to be alone")
        wait_until(lambda: cluster.cpus() == (0, 0), 20, "the master to miss it")
        network.mend("one")
        wait_until(lambda: cluster.cpus() == (1, 1), 60, "its CPU again")
        assert worker.poll() is None
