"""What happens at an xparl cluster when samplers, workers and learners are lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.engines.xparl import XparlEngine
from cluster.engines.xparl_master import ClusterError, cluster_cpus
from common.ports import free_port
from parl_compat.shim import load_parl
from tests.cluster.pools import learners_side, toy
from tests.cluster.test_supervisor import NOTICED_S, REPLACED_S, Watched, lost_columns
from tests.conftest import ROOT, still_running, wait_until

pytestmark = [pytest.mark.xdist_group("xparl_faults"), pytest.mark.slow]


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


class Cluster:
    """A master, and workers of two CPUs each, in whose environments faults are made in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self.address = f"localhost:{self.port}"
        self.processes: list[subprocess.Popen] = []
        self.workers: list[subprocess.Popen] = []

    def start(self) -> None:
        self.start_master()
        for _ in range(2):
            self.connect()
        self.wait_for_cpus(4, 60)

    def start_master(self) -> None:
        options = ["--port", str(self.port), "--monitor_port", "1"]
        self.master = self._start("master", *options)
        wait_until(self._listens, 60, "the master")

    def _start(self, name: str, *options: str) -> subprocess.Popen:
        script = os.path.join(load_parl().__path__[0], "remote", "start.py")
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "parl_compat.command", script, "--name", name,
             *options],
            cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "FAULTS_FOLDER": str(self.folder)},
        )  # fmt: skip
        self.processes.append(process)
        return process

    def connect(self) -> None:
        """Start another worker."""
        options = ["--address", self.address, "--cpu_num", "2"]
        options += ["--log_server_port", str(free_port())]
        self.workers.append(self._start("worker", *options))

    def _listens(self) -> bool:
        return any(
            connection.laddr.port == self.port
            for connection in psutil.Process(self.master.pid).net_connections()
        )

    def wait_for_cpus(self, free: int, seconds: float) -> None:
        wait_until(lambda: cluster_cpus(self.address, 0)[0] == free, seconds, f"{free} free CPUs")

    def close(self) -> None:
        for process in self.processes:
            family = descendants(process.pid) if process.poll() is None else []
            with contextlib.suppress(ProcessLookupError):  # a test has killed it
                os.killpg(process.pid, signal.SIGKILL)
            for job in family:  # jobs are groups of their own
                with contextlib.suppress(psutil.NoSuchProcess):
                    job.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("faults"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def run(cluster, monkeypatch) -> Iterator[Watched]:
    """Two samplers that have collected a fragment, at a cluster of four CPUs."""
    monkeypatch.setenv("FAULTS_FOLDER", str(cluster.folder))
    with Watched(engine_name="xparl", xparl_addr=cluster.address) as run:
        while lost_columns(run.collect()):
            pass
        yield run


def job_of(run: Watched, index: int) -> psutil.Process:
    """The process in which a sampler runs: the one that listens at its place."""
    engine = run.pool.engine
    assert isinstance(engine, XparlEngine)
    address = engine._actors[index].placement.address
    assert address is not None
    host, _, port = address.rpartition(":")  # at another address, the port may be somebody else's
    pid = next(
        connection.pid
        for connection in psutil.net_connections("tcp4")
        if connection.laddr == (host, int(port)) and connection.status == psutil.CONN_LISTEN
    )
    assert pid is not None, f"whose {address} is cannot be seen"
    return psutil.Process(pid)


def command(process: psutil.Process) -> list[str]:
    """Its words; none where it has ended."""
    try:
        return process.as_dict(["cmdline"], ad_value=[])["cmdline"]
    except psutil.NoSuchProcess:
        return []


def is_there(process: psutil.Process) -> bool:
    return process.is_running() and bool(still_running([process]))


def collect_until_all_are_there(run: Watched, seconds: float) -> None:
    start = time.monotonic()
    while lost_columns(run.collect()):
        assert time.monotonic() - start < seconds


def test_a_lost_sampler_is_left_out_and_replaced(run, cluster):
    for fault in NOTICED_S:
        restarts = run.pool.restarts
        jobs = [job_of(run, index) for index in range(2)]
        (cluster.folder / fault).touch()
        start = time.monotonic()
        lost = lost_columns(run.collect())
        assert time.monotonic() - start <= NOTICED_S[fault], fault
        assert lost in ([0, 1], [2, 3]), fault
        collect_until_all_are_there(run, REPLACED_S)
        assert run.pool.restarts == restarts + 1, run.told
        old = jobs[lost[0] // 2]
        wait_until(
            lambda old=old: not is_there(old), REPLACED_S, f"the end of {old}, after {fault}"
        )
        assert job_of(run, 1 - lost[0] // 2) == jobs[1 - lost[0] // 2], "the other one goes on"
    cluster.wait_for_cpus(2, 15)
    told = [text.splitlines()[0] for text in run.told if "is lost" in text]
    assert len(told) >= len(NOTICED_S)
    assert all("(remote actor) is lost: " in text for text in told)


def worker_of(run: Watched, index: int) -> int:
    """The process id of a sampler's worker, whose launcher's nursery has forked its job."""
    worker = job_of(run, index).parents()[2]
    return worker.pid


def test_samplers_of_a_killed_worker_move_to_free_cpus(run, cluster):
    killed = worker_of(run, 0)
    worker = next(worker for worker in cluster.workers if worker.pid == killed)
    family = descendants(killed)
    jobs = [process for process in family if "job.py" in " ".join(command(process))]
    restarts = run.pool.restarts
    worker.kill()
    start = time.monotonic()
    while run.pool.restarts == restarts:
        assert time.monotonic() - start < 2.0 + REPLACED_S
        run.collect()
    collect_until_all_are_there(run, REPLACED_S)
    assert killed not in {worker_of(run, index) for index in range(2)}
    wait_until(lambda: not any(map(is_there, jobs)), 15, "its jobs to end")
    # without any CPU the run waits for those that a worker brings
    restarts = run.pool.restarts
    next(worker for worker in cluster.workers if worker.pid == worker_of(run, 0)).kill()
    cluster.connect()
    start = time.monotonic()
    while run.pool.restarts < restarts + 2:
        assert time.monotonic() - start < 2.0 + 2 * REPLACED_S
        run.collect()
    collect_until_all_are_there(run, 2 * REPLACED_S)
    cluster.connect()
    cluster.wait_for_cpus(2, 60)


def start_learner(cluster: Cluster, run_dir: Path, *flags: str) -> subprocess.Popen:
    """A run of two samplers that has done its first update."""
    learner = subprocess.Popen(
        [sys.executable, "train.py", "--env", "tests.faulty_env:Faulty", "--env_num", "2",
         "--samplers", "2", "--xparl_addr", cluster.address, "--run_dir", str(run_dir),
         "--batch_size", "256", "--compile", "off", "--test_every_steps", "1000000", *flags],
        cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"FAULTS_FOLDER": str(cluster.folder)},
    )  # fmt: skip
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), 90, "the run's first update")
    return learner


def test_the_cpus_of_a_killed_learner_are_free_again_and_its_environments_helpers_end(
    cluster, tmp_path
):
    total = 2 * sum(worker.poll() is None for worker in cluster.workers)
    cluster.wait_for_cpus(total, 15)
    learner = start_learner(cluster, tmp_path / "run")
    cluster.wait_for_cpus(total - 2, 1)

    def helpers() -> list[psutil.Process]:
        family = [p for w in cluster.workers if w.poll() is None for p in descendants(w.pid)]
        return [process for process in family if command(process) == ["sleep", "600"]]

    (cluster.folder / "helper").touch()
    wait_until(helpers, 30, "an environment's helper")
    (helper,) = helpers()
    learner.kill()
    learner.communicate()
    cluster.wait_for_cpus(total, 15)
    wait_until(lambda: not is_there(helper), 15, "the helper to end")


def test_samplers_for_which_there_is_no_cpu_yet_join_later(cluster, monkeypatch):
    monkeypatch.setenv("FAULTS_FOLDER", str(cluster.folder))
    _, *others = [worker for worker in cluster.workers if worker.poll() is None]
    for worker in others:
        worker.kill()
        worker.wait()
    cluster.wait_for_cpus(2, 30)
    settings = {
        "xparl_addr": cluster.address, "wait_for_cpus": 5.0, "on_loss": "collect_again",
    }  # fmt: skip
    with Watched(samplers=3, engine_name="xparl", **settings) as run:
        assert lost_columns(run.collect())
        assert "1 of 3 samplers have no CPU yet" in run.told[0]
        cluster.connect()
        collect_until_all_are_there(run, 2 * REPLACED_S)
        assert (run.pool.restarts, run.pool.samplers_alive) == (0, 3)
        job_of(run, 2).kill()
        while not run.pool.restarts:
            assert lost_columns(run.collect()) == []  # there is a CPU for the next one
        # there is none any more: the others go on
        killed = worker_of(run, 2)
        next(worker for worker in cluster.workers if worker.pid == killed).kill()
        start = time.monotonic()
        while not lost_columns(run.collect()):
            assert time.monotonic() - start < REPLACED_S
    cluster.connect()
    cluster.wait_for_cpus(4, 60)


def test_a_master_that_ends_before_the_run_has_begun_is_named(monkeypatch):
    load_parl()
    monkeypatch.setattr("parl.remote.client.GLOBAL_CLIENT", None)
    monkeypatch.setattr("parl.remote.remote_constants.HEARTBEAT_TIMEOUT_S", 1)
    address = f"localhost:{free_port()}"  # where nothing listens any more
    config = toy("ConstantReward", xparl_addr=address)
    with pytest.raises(ClusterError, match=f"the xparl master at {address} answers no more"):
        XparlEngine(config, learners_side(config)[0], 2)


def test_a_run_goes_on_without_its_master_and_with_the_next_one(run, cluster):
    cluster.master.kill()
    start = time.monotonic()
    while not any("is away" in text for text in run.told):
        assert lost_columns(run.collect()) == []
        assert time.monotonic() - start < 15
    assert lost_columns(run.collect()) == []
    cluster.start_master()
    cluster.connect()
    # the workers of before join too, once they have missed their master and ended their actors
    wait_until(lambda: cluster_cpus(cluster.address, 0)[0] >= 2, 60, "2 free CPUs")
    if not run.pool.restarts:
        job_of(run, 0).kill()
    while not run.pool.restarts:
        run.collect()
    collect_until_all_are_there(run, 4 * REPLACED_S)  # three workers start at once
    assert any("the xparl master is back after" in text for text in run.told)


def test_a_run_whose_master_stays_away_ends_with_a_checkpoint(cluster, tmp_path):
    learner = start_learner(cluster, tmp_path / "run", "--master_timeout", "5")
    checkpoints = tmp_path / "run" / "checkpoints"
    before = set(checkpoints.iterdir())
    cluster.master.kill()
    wait_until(lambda: set(checkpoints.iterdir()) - before, 15, "a checkpoint")
    assert learner.poll() is None, "it goes on, with what it has saved"
    output, errors = learner.communicate(timeout=30)
    assert learner.returncode == 75, errors
    assert "is away" in output
    assert f"go on with `python train.py --resume {tmp_path / 'run'}`" in errors
