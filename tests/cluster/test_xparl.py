"""A real xparl cluster, driven by `python train.py` as a user drives it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.engines.xparl_master import ClusterError, choose_key, cluster_cpus
from parl_compat import keys
from tests.common.test_user_class import write_users_folder
from tests.conftest import ROOT, run_command, wait_until

pytestmark = [pytest.mark.xdist_group("xparl"), pytest.mark.slow]  # these share one cluster

ENVIRONMENT = """
import os, time
import gymnasium, numpy as np

class Slow(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        open({pid_file!r}, "w").write(str(os.getpid()))
        self.t = 0
        return np.ones(1, np.float32), {{}}

    def step(self, action):
        time.sleep(0.02)
        self.t += 1
        reward = float("nan") if self.t == {nan_at} else 1.0
        return np.ones(1, np.float32), reward, False, self.t >= 100, {{}}
"""
FLAGS = ["--env_num", "1", "--batch_size", "16", "--minibatch_size", "16", "--samplers", "1"]


def start(cluster: str, folder: Path, *flags: str, nan_at: int = -1) -> subprocess.Popen:
    """A run in a folder of its own, on an environment that only this folder has."""
    folder.mkdir()
    source = ENVIRONMENT.format(pid_file=str(folder / "pid"), nan_at=nan_at)
    (folder / "my_env.py").write_text(source)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--env", "my_env:Slow", *FLAGS, "--xparl_addr",
         cluster, "--run_dir", "run", *flags],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def last_metrics(folder: Path) -> dict:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1]) if lines else {"time_s": 0.0}


@pytest.fixture(scope="module", autouse=True)
def long_run(xparl_cluster, tmp_path_factory):
    """A run that lives on while the tests of this file are run beside it."""
    folder = tmp_path_factory.mktemp("long") / "work"
    process = start(xparl_cluster, folder)
    yield process, folder
    process.kill()
    process.communicate()


@pytest.mark.parametrize("lag", ["0", "1"])
def test_xparl_gives_the_weights_that_local_processes_give(xparl_cluster, lag, tmp_path):
    digests = {}
    for pool, where in {"local": [], "xparl": ["--xparl_addr", xparl_cluster]}.items():
        run_dir = tmp_path / pool
        done = run_command(
            "train.py", "--env", "HalfCheetah-v4", "--continuous_action", "--env_num", "5",
            "--train_total_steps", "4000", "--batch_size", "1280", "--update_epochs", "2",
            "--compile", "off", "--policy_lag", lag, "--samplers", "2", *where, "--run_dir", str(run_dir),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        summary = json.loads((run_dir / "summary.json").read_text())
        assert summary["pool"] == pool
        assert summary["samplers"] == 2
        digests[pool] = summary["weights_sha256"]
    assert digests["xparl"] == digests["local"]


def test_more_samplers_than_cpus_says_how_many_there_are(xparl_cluster):
    done = run_command(
        "train.py", "--env", "HalfCheetah-v4", "--samplers", "9", "--xparl_addr", xparl_cluster
    )
    assert done.returncode == 2
    assert "samplers is 9, but the cluster" in done.stderr
    assert "has 4 CPUs" in done.stderr


def test_what_is_no_master_is_said():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        threading.Thread(target=lambda: silent.accept(), daemon=True).start()
        address = f"localhost:{silent.getsockname()[1]}"
        done = run_command("train.py", "--env", "CartPole-v1", "--xparl_addr", address)
    assert done.returncode == 2
    assert "does not answer as an xparl master" in done.stderr


@pytest.mark.parametrize("address", ["localhost", "localhost:\u00b2", "localhost:99999", ":8010"])
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(ClusterError, match="is not IP:PORT"):
        choose_key(None, address)


def test_a_run_with_such_an_address_says_so():
    done = run_command("train.py", "--env", "CartPole-v1", "--xparl_addr", "localhost")
    assert done.returncode == 2
    assert "is not IP:PORT" in done.stderr


def test_nan_in_a_remote_environment_names_its_place(xparl_cluster, tmp_path):
    process = start(xparl_cluster, tmp_path / "work", "--nan", "stop", nan_at=5)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2
    assert (
        "sampler 0 (remote actor): reward of environment 0 (my_env:Slow) is nan at step 4" in errors
    )
    assert "Traceback" not in errors


def test_the_users_modules_are_the_actors_too(xparl_cluster, tmp_path):
    """Among them are a model.py and a random.py, and the second is never to be imported."""
    write_users_folder(tmp_path)
    done = run_command(
        str(ROOT / "train.py"), "--env", "my_env:MyEnv", "--network", "my_network:Net",
        "--env_num", "2", "--train_total_steps", "200", "--batch_size", "64",
        "--minibatch_size", "64", "--samplers", "1", "--xparl_addr", xparl_cluster,
        "--run_dir", "run", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["pool"] == "xparl"


def test_a_bad_message_does_not_end_the_master(xparl_cluster):
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as request:
        request.setsockopt(zmq.LINGER, 0)
        keys.secure(request)
        request.setsockopt(zmq.RCVTIMEO, 5000)
        request.connect(f"tcp://{xparl_cluster}")
        request.send_multipart([b"hello"])
        assert request.recv_multipart()[0] == b"[EXCEPTION]"
    assert cluster_cpus(xparl_cluster)[1] == 4


def test_a_worker_that_was_given_up_and_returns_does_no_harm(xparl_cluster):
    import zmq

    from parl_compat import messages

    with zmq.Context() as context, context.socket(zmq.REQ) as request:
        request.setsockopt(zmq.LINGER, 0)
        keys.secure(request)
        request.setsockopt(zmq.RCVTIMEO, 5000)
        request.connect(f"tcp://{xparl_cluster}")
        load = {"vacant_memory": 1.0, "used_memory": 1.0, "vacant_gpu_memory": 0,
                "used_gpu_memory": 0, "load_time": "12:00:00", "load_value": 0.5}  # fmt: skip
        message = [b"[WORKER_STATUS_UPDATE_TAG]", b"127.0.0.1:1", messages.pack(load)]
        request.send_multipart(message)
        assert request.recv_multipart() == [b"[NORMAL]"]
    assert cluster_cpus(xparl_cluster)[1] == 4


def test_a_learner_connects_whatever_lies_in_its_folder(xparl_cluster, tmp_path):
    (tmp_path / ".#open_in_emacs.py").symlink_to("nowhere")
    (tmp_path / "pyarrow.py").write_text("__version__ = '1.0'\n")  # the master has none
    (tmp_path / "pyarrow-1.0.dist-info").mkdir()
    (tmp_path / "pyarrow-1.0.dist-info" / "METADATA").write_text("Name: pyarrow\nVersion: 1.0\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, os\n"
        "from parl_compat.shim import load_parl\n"
        "load_parl().connect(sys.argv[1])\n"
        "print('connected', flush=True)\n"
        "os._exit(0)\n"
    )
    done = run_command(str(program), xparl_cluster)
    assert (done.returncode, done.stdout) == (0, "connected\n"), done.stderr


def test_an_actor_lives_for_a_minute_and_a_signal_frees_it(xparl_cluster, long_run):
    process, folder = long_run
    wait_until(lambda: last_metrics(folder)["time_s"] > 62, 90, "a minute of training")
    before = last_metrics(folder)["update"]
    wait_until(lambda: last_metrics(folder)["update"] > before + 2, 10, "it to go on")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert (process.returncode, errors) == (0, "")
    assert "sigterm:" in output
    wait_until(lambda: cluster_cpus(xparl_cluster, 4)[0] == 4, 40, "the CPUs to be free again")
