"""A worker that has lost its master, as where the network was cut for a minute: it joins it again.

PARL's workers end then, and somebody has to start them again on every machine.

This module is imported by `parl_compat.command`, once PARL is.
"""

from __future__ import annotations

import os
import sys
import time

import psutil
from parl.remote import worker

from parl_compat.learner import reach_master

MASTER_PATIENCE_S = 120.0  # how long a worker without a master waits for one
LOOK_S = 1.0


def serve(self: worker.Worker) -> None:
    """Serve the master until it is lost. Once one is there again, begin as a new worker.

    What the worker had started is gone by then: its actors, and their processes too.
    """
    if not self.worker_is_alive:  # the master has refused it
        return
    self.master_heartbeat_thread.join()
    started = psutil.Process().children(recursive=True)
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(started, timeout=5.0)
    if comes_back(self.master_address):
        for descriptor in os.listdir("/proc/self/fd"):
            if int(descriptor) > 2 and os.path.lexists(f"/proc/self/fd/{descriptor}"):
                os.set_inheritable(int(descriptor), False)
        os.execv(sys.executable, sys.orig_argv)


def comes_back(master_address: str) -> bool:
    """Wait until something listens at the master's address; whether it did in time."""
    deadline = time.monotonic() + MASTER_PATIENCE_S
    while time.monotonic() < deadline:
        try:
            reach_master(master_address)
        except ConnectionError:
            time.sleep(LOOK_S)
        else:
            return True
    return False


def mend() -> None:
    worker.Worker.run = serve
