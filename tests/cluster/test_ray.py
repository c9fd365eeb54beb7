"""A real Ray cluster on this machine, with a token, driven by the engine and by `train.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.engines.ray_cluster import RayError, cluster_cpus
from cluster.lockstep import LockstepPool
from cluster.supervisor import Supervisor
from rollout import Weights
from settings.config import Config, ConfigError
from settings.rules import validate
from tests.cluster.pools import assert_equal, copy_of, make_engine
from tests.common.test_user_class import write_users_folder
from tests.conftest import BIN, ROOT, free_port, processes_mentioning, run_command, wait_until
from train import check

needs_ray = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: `make ray`"),
    pytest.mark.xdist_group("ray"),  # these share one cluster
    pytest.mark.slow,
]
TIMEOUT_S = 3.0
REPLACED_S = 15.0
# how soon a fault is noticed [s]: at once where a process ends, else after the timeout
NOTICED_S = {"kill": 2.0, "sleep": TIMEOUT_S + 3.0, "gil": TIMEOUT_S + 3.0, "stop": TIMEOUT_S + 3.0}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[tuple[str, Path]]:
    """Address of a cluster of 4 CPUs that asks for a token, and its actors' FAULTS_FOLDER."""
    port = free_port()
    # in /tmp itself: a socket's path may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ray") as home, pytest.MonkeyPatch.context() as patch:
        token, faults = Path(home) / "token", Path(home) / "faults"
        token.write_text(secrets.token_hex(32))
        faults.mkdir()
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("FAULTS_FOLDER", str(faults))
        subprocess.run(
            [str(BIN / "python"), "-m", "ray.scripts.scripts", "start", "--head", "--port",
             str(port), "--num-cpus", "4", "--object-store-memory", "100000000",
             "--include-dashboard", "false", "--disable-usage-stats", "--temp-dir", home],
            check=True, timeout=90, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "5"},
        )  # fmt: skip
        try:
            yield f"127.0.0.1:{port}", faults
        finally:
            found = [psutil.Process(pid) for pid in processes_mentioning(home)]
            for process in found + [c for p in found for c in p.children(recursive=True)]:
                if psutil.pid_exists(process.pid):
                    process.kill()


def actors(address: str) -> list[psutil.Process]:
    """The processes of the cluster's actors."""
    port = address.rpartition(":")[2]
    raylets = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "raylet" and f":{port}" in " ".join(process.info["cmdline"])
    ]
    assert len(raylets) == 1
    commands = []
    for process in raylets[0].children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            commands.append((process, "".join(process.cmdline()[:1])))
    return [process for process, command in commands if "Actor" in command]


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
    def test_ray_collects_the_bits_that_local_processes_collect(self, env, settings, ray_cluster):
        rollouts = []
        for where in ({}, {"ray_address": ray_cluster[0]}):
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

    def test_lost_actors_are_left_out_and_replaced(self, ray_cluster):
        address, faults = ray_cluster
        config = Config(
            env="tests.faulty_env:Faulty", env_num=4, batch_size=64, minibatch_size=16,
            sampler_timeout=TIMEOUT_S, ray_address=address,
        )  # fmt: skip
        told: list[str] = []
        engine, weights = make_engine(config, 2)
        pool, update = LockstepPool(Supervisor(engine, told.append)), 0

        def lost_columns() -> list[int]:
            nonlocal update
            pool.request(Weights(update, weights.arrays), update, update == 0)
            update += 1
            return np.flatnonzero(~pool.gather().valid.any(0)).tolist()

        try:
            assert lost_columns() == []
            for count, (fault, noticed_s) in enumerate(NOTICED_S.items(), 1):
                before = {process.pid for process in actors(address)}
                (faults / fault).touch()
                start = time.monotonic()
                lost = lost_columns()
                assert lost in ([0, 1], [2, 3]), fault
                assert time.monotonic() - start <= noticed_s, fault
                while lost_columns():  # the others go on all the time
                    assert time.monotonic() - start < noticed_s + REPLACED_S, fault
                assert pool.restarts == count
                wait_until(
                    lambda old=before: len(old & {p.pid for p in actors(address)}) == 1,
                    REPLACED_S, f"the process of {fault} to be gone",
                )  # fmt: skip
        finally:
            pool.close()
        assert "is lost: ActorDiedError: " in told[0]
        assert "is lost: it has been in one step for 3 s" in told[2]
        wait_until(lambda: not actors(address), REPLACED_S, "the actors to end")

    def test_a_token_that_is_not_the_clusters_is_refused(self, ray_cluster, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        done = run_command("train.py", "--env", "CartPole-v1", "--ray_address", ray_cluster[0])
        assert done.returncode == 2
        assert "asks for a token, and another one than yours" in done.stderr

    def test_more_samplers_than_cpus_says_how_many_there_are(self, ray_cluster):
        config = Config(env="CartPole-v1", samplers=5, ray_address=ray_cluster[0])
        with pytest.raises(ConfigError, match=r"samplers is 5, but the cluster .* has 4 CPUs"):
            check(config)
        importlib.import_module("ray").shutdown()

    def test_a_run_has_its_own_modules_there_and_leaves_nothing_behind(self, ray_cluster, tmp_path):
        """Among them are a model.py and a random.py, and the second is never to be imported."""
        write_users_folder(tmp_path)
        done = run_command(
            str(ROOT / "train.py"), "--env", "my_env:MyEnv", "--network", "my_network:Net",
            "--env_num", "2", "--train_total_steps", "200", "--batch_size", "64",
            "--minibatch_size", "64", "--ray_address", ray_cluster[0], "--run_dir", "run",
            cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["pool"], summary["exit_reason"]) == ("ray", "finished")
        assert summary["samplers"] == 2  # of its 4 CPUs no more than environments
        assert processes_mentioning(str(tmp_path)) == []
        wait_until(lambda: not actors(ray_cluster[0]), REPLACED_S, "the actors to end")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_learners_end_frees_its_cpus(self, number, ray_cluster, tmp_path):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "--env", "CartPole-v1", "--samplers", "2",
             "--ray_address", ray_cluster[0], "--run_dir", str(tmp_path / "run")],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text(), 120, "an update")
        assert len(actors(ray_cluster[0])) == 2
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
        if number == signal.SIGTERM:
            assert (process.returncode, errors) == (0, "")
            assert "sigterm:" in output
        wait_until(lambda: not actors(ray_cluster[0]), 15, "the actors to end")

    def test_a_dead_address_is_said_at_once_and_ray_takes_nothing_over(self):
        """Its own handler of SIGTERM would end a run without a checkpoint."""
        before, start = (signal.getsignal(signal.SIGTERM), sys.excepthook), time.monotonic()
        with pytest.raises(RayError, match="no Ray cluster answers at ray_address 127"):
            cluster_cpus(f"127.0.0.1:{free_port()}")
        assert time.monotonic() - start < 10
        assert (signal.getsignal(signal.SIGTERM), sys.excepthook) == before
