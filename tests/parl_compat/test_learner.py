"""A learner whose master stops answering: a real master, which is stopped by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from common.ports import free_port
from parl_compat.shim import load_parl
from tests.conftest import BIN, ROOT, wait_until

LEARNER = """
import os, psutil, signal, sys, threading, time
from parl_compat import shim
parl = shim.load_parl()
from parl_compat import learner
from parl.remote.client import get_global_client
address, master = sys.argv[1], int(sys.argv[2])
parl.connect(address)
learner.MASTER_TIMEOUT_S = 1.0
os.kill(master, signal.SIGSTOP)
while psutil.Process(master).status() != "stopped": time.sleep(0.01)
class Actor: pass
Actor.__module__ = "made_up"
Remote = parl.remote_class(Actor)
def start():
    try:
        Remote()
    except Exception as error:
        print(f"{type(error).__name__} {error}\\n", end="", flush=True)  # as one: others print too
threads = [threading.Thread(target=start, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join(timeout=20)
print("lock is free:", get_global_client().lock.acquire(timeout=1), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_a_silent_master_is_an_error_in_every_thread_that_starts_an_actor(tmp_path):
    port, monitor = free_port(), free_port()
    script = os.path.join(load_parl().__path__[0], "remote", "start.py")
    master = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "parl_compat.command", script, "--name", "master",
         "--port", str(port), "--monitor_port", str(monitor)],
        cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        status = [str(BIN / "python"), "-c", "import sys; from parl_compat.local_clusters import"
                  " ask_status; sys.exit(ask_status(sys.argv[1]) is None)"]  # fmt: skip
        wait_until(
            lambda: subprocess.call([*status, f"localhost:{port}"], cwd=ROOT) == 0, 30, "the master"
        )
        (tmp_path / "learner.py").write_text(LEARNER)
        done = subprocess.run(
            [sys.executable, str(tmp_path / "learner.py"), f"localhost:{port}", str(master.pid)],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        master.send_signal(signal.SIGKILL)
        master.wait()
    *errors, lock = done.stdout.splitlines()
    assert len(errors) == 3, done.stderr
    # which of PARL's sentences a thread gets depends on how far it had come
    assert all("master" in error for error in errors), errors
    assert any(error.startswith("ConnectionError") for error in errors)
    assert lock == "lock is free: True"
