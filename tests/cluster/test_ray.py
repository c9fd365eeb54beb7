"""A real Ray cluster on this machine, with a token, driven by the engine and by `train.py`."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engines.ray import RayError, cluster_cpus
from cluster.lockstep import LockstepPool
from cluster.supervisor import Supervisor
from common.ports import free_port
from rollout import Weights
from settings.config import Config, ConfigError
from settings.rules import validate
from tests.cluster.pools import assert_equal, copy_of, make_engine
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.test_supervisor import REPLACED_S, TIMEOUT_S, Watched, lost_columns
from tests.common.test_user_class import write_users_folder
from tests.conftest import ROOT, processes_mentioning, run_command, wait_until
from train import check

needs_ray = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: `make ray`"),
    pytest.mark.xdist_group("ray"),  # these share one cluster
    pytest.mark.slow,
]
# how soon a fault is noticed [s]: at once where a process ends, else after the timeout
NOTICED_S = {"kill": 2.0, "sleep": TIMEOUT_S + 3.0, "gil": TIMEOUT_S + 3.0, "stop": TIMEOUT_S + 3.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of 4 CPUs."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as home:
        cluster = RayCluster(Path(home))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.variables.items():
                patch.setenv(name, value)
            try:
                cluster.start_head(4)
                yield cluster
            finally:
                cluster.kill()


def collect_until_all_are_there(run: Watched, seconds: float) -> None:
    start = time.monotonic()
    while lost_columns(run.collect()):  # the others go on all the time
        assert time.monotonic() - start < seconds, run.told


def start_learner(cluster: RayCluster, run_dir: Path, *flags: str) -> subprocess.Popen:
    """A run of two samplers that has done its first update."""
    learner = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--env", "CartPole-v1", "--samplers", "2",
         "--ray_address", cluster.address, "--run_dir", str(run_dir), *flags],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), 120, "the run's first update")
    return learner


class TestWithoutACluster:
    def test_without_ray_the_remedy_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(RayError, match="Ray is not installed: run `make ray`"):
            cluster_cpus("auto")

    @pytest.mark.parametrize(
        ("settings", "rule"),
        [
            ({"ray_address": "localhost"}, "must be auto or HOST:PORT"),
            ({"ray_address": "ray://10.0.0.1:6379"}, "must be auto or HOST:PORT"),
            ({"ray_address": "10.0.0.1:99999"}, "must be auto or HOST:PORT"),
            ({"ray_address": "auto", "xparl_addr": "localhost:8010"}, "name two clusters"),
            ({"ray_address": "auto", "samplers": 0}, "ray_address auto asks for a cluster"),
        ],
    )
    def test_an_address_that_cannot_be_meant_is_refused(self, settings, rule):
        with pytest.raises(ConfigError, match=rule):
            validate(Config(env="CartPole-v1", **settings))


class TestAtACluster:
    pytestmark = needs_ray

    @pytest.mark.parametrize(
        ("env", "settings"),
        [("CartPole-v1", {}), ("HalfCheetah-v4", {"normalize_observation": True})],
    )
    def test_ray_collects_the_bits_that_local_processes_collect(self, env, settings, cluster):
        rollouts = []
        for where in ({}, {"ray_address": cluster.address}):
            config = Config(
                env=env, env_num=5, batch_size=320, minibatch_size=64, **settings, **where
            )
            engine, weights = make_engine(config, 2)
            assert engine.name == ("ray" if where else "local")
            pool = LockstepPool(Supervisor(engine, print))
            pool.request(weights, 0, True)
            first = copy_of(pool.gather())
            changed = {name: array * array.dtype.type(2) for name, array in weights.arrays.items()}
            pool.request(Weights(1, changed), 1, False)
            rollouts.append([first, copy_of(pool.gather())])
            pool.close()
        for one, two in zip(*rollouts, strict=True):
            assert_equal(one, two)

    def test_lost_actors_are_left_out_and_replaced(self, cluster):
        with Watched(engine_name="ray", ray_address=cluster.address) as run:
            assert lost_columns(run.collect()) == []
            for count, (fault, noticed_s) in enumerate(NOTICED_S.items(), 1):
                before = {process.pid for process in cluster.actors()}
                (cluster.faults / fault).touch()
                start = time.monotonic()
                lost = lost_columns(run.collect())
                assert lost in ([0, 1], [2, 3]), fault
                assert time.monotonic() - start <= noticed_s, fault
                collect_until_all_are_there(run, noticed_s + REPLACED_S)
                assert run.pool.restarts == count
                wait_until(
                    lambda old=before: len(old & {p.pid for p in cluster.actors()}) == 1,
                    REPLACED_S, f"the process of {fault} to be gone",
                )  # fmt: skip
            told = [text for text in run.told if "is lost" in text]
            assert "is lost: ActorDiedError: " in told[0]
            assert "is lost: it has been in one step for 3 s" in told[1]
            cluster.actors()[0].kill()  # while nobody waits for it
            wait_until(
                lambda: len([t for t in run.told if "is lost" in t]) > len(told), 10, "it said"
            )
        wait_until(lambda: not cluster.actors(), REPLACED_S, "the actors to end")

    def test_a_token_that_is_not_the_clusters_is_refused(self, cluster, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        done = run_command("train.py", "--env", "CartPole-v1", "--ray_address", cluster.address)
        assert done.returncode == 2
        assert "asks for a token, and another one than yours" in done.stderr

    def test_more_samplers_than_cpus_says_how_many_there_are(self, cluster):
        config = Config(env="CartPole-v1", samplers=5, ray_address=cluster.address)
        with pytest.raises(ConfigError, match=r"samplers is 5, but the cluster .* has 4 CPUs"):
            check(config)

    def test_a_run_has_its_own_modules_there_and_leaves_nothing_behind(self, cluster, tmp_path):
        """Among them are a model.py and a random.py, and the second is never to be imported."""
        write_users_folder(tmp_path)
        done = run_command(
            str(ROOT / "train.py"), "--env", "my_env:MyEnv", "--network", "my_network:Net",
            "--env_num", "2", "--train_total_steps", "200", "--batch_size", "64",
            "--minibatch_size", "64", "--ray_address", cluster.address, "--run_dir", "run",
            cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["pool"], summary["exit_reason"]) == ("ray", "finished")
        assert summary["samplers"] == 2  # of its 4 CPUs no more than environments
        assert processes_mentioning(str(tmp_path)) == []
        wait_until(lambda: not cluster.actors(), REPLACED_S, "the actors to end")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_learners_end_frees_its_cpus(self, number, cluster, tmp_path):
        process = start_learner(cluster, tmp_path / "run")
        assert len(cluster.actors()) == 2
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
        if number == signal.SIGTERM:
            assert (process.returncode, errors) == (0, "")
            assert "sigterm:" in output
        wait_until(lambda: not cluster.actors(), 15, "the actors to end")

    def test_a_dead_address_is_said_at_once(self):
        start = time.monotonic()
        with pytest.raises(RayError, match="no Ray cluster answers at ray_address 127"):
            cluster_cpus(f"127.0.0.1:{free_port()}")
        assert time.monotonic() - start < 10

    def test_a_run_outlives_a_node_and_then_the_whole_cluster(self, cluster):
        cluster.kill()
        cluster.start_head(1)
        settings = {"ray_address": cluster.address, "wait_for_cpus": 8.0}
        with Watched(engine_name="ray", **settings) as run:
            assert lost_columns(run.collect()) in ([0, 1], [2, 3])
            assert run.told == ["1 of 2 samplers have no CPU yet: they join when there is one"]
            node = cluster.start_node(1)
            collect_until_all_are_there(run, 2 * REPLACED_S)
            assert run.pool.restarts == 0
            node.kill()
            start = time.monotonic()
            while not lost_columns(run.collect()):
                assert time.monotonic() - start < 15
            assert lost_columns(run.collect()) in ([0, 1], [2, 3])  # missed, and the other goes on
            cluster.kill("gcs_server")
            wait_until(lambda: any("is away" in text for text in run.told), 15, "its absence told")
            assert lost_columns(run.collect()) in ([0, 1], [2, 3])  # who lives goes on
            cluster.kill()
            cluster.start_head(2)
            collect_until_all_are_there(run, 2 * REPLACED_S)
            assert any("the Ray cluster is back after" in text for text in run.told)

    def test_a_run_whose_head_stays_away_ends_with_a_checkpoint(self, cluster, tmp_path):
        learner = start_learner(cluster, tmp_path / "run", "--master_timeout", "3")
        cluster.kill()
        start = time.monotonic()
        output, errors = learner.communicate(timeout=30)
        assert learner.returncode == 75, errors
        assert time.monotonic() - start < 15 + 3
        assert "is away" in output
        assert f"go on with `python train.py --resume {tmp_path / 'run'}`" in errors
        assert processes_mentioning(str(tmp_path)) == []
        cluster.start_head(2)
        done = run_command("train.py", "--resume", str(tmp_path / "run"), "--max_minutes", "0.01")
        assert (done.returncode, done.stderr) == (0, "")
