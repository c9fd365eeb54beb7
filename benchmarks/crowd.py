"""Experiments of `chaos.py` with many actors, or many CPUs, on the xparl cluster of one machine."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from disturbed import Row, Training
from timing import Cluster, cluster

from cluster.engines.xparl_master import cluster_cpus
from cluster.make import make_pool
from cluster.pool import SamplerPool
from common.sources import ROOT
from envs import spaces_of
from model import make_model
from parl_compat import learner
from parl_compat.placement import GivenUp, Placement
from parl_compat.shim import load_parl
from rollout import Weights
from settings.config import Config

STAND_S = 60.0  # in which 64 actors are to stand
CPUS_BACK_S = 60.0  # after which a CPU that is not free is lost
RUN_S = 600.0
BENCHMARKS = str(ROOT / "benchmarks")  # where the cluster's actors find sleeping_env
LATE_EVERY = 5  # of so many actors one answers its first ping too late


def free_cpus(made: Cluster, cpus: int) -> int:
    """How many of a cluster's CPUs are free, once all are or none comes back any more."""
    deadline = time.monotonic() + CPUS_BACK_S
    while (free := cluster_cpus(made.flags[1], cpus)[0]) < cpus and time.monotonic() < deadline:
        time.sleep(1.0)
    return free


def sleepers(made: Cluster, samplers: int) -> Config:
    """Settings of a run on environments that sleep, one for each sampler."""
    return Config(
        env="sleeping_env:Sleeping", env_num=samplers, samplers=samplers, batch_size=samplers * 16,
        minibatch_size=samplers * 16, rollout_steps=16, hidden_sizes=(8,), xparl_addr=made.flags[1],
    )  # fmt: skip


def collect_until_whole(pool: SamplerPool, weights: dict[str, np.ndarray], samplers: int) -> None:
    """Collect until a fragment has the part of every sampler."""
    update = 0
    while True:
        pool.request(Weights(update, weights), update, update == 0)
        rollout = pool.gather()
        update += 1
        if rollout.valid.any(0).all():
            return


def actors(samplers: int, times: int) -> Row:
    """Actors made and destroyed: when all have sent a fragment, and whether all CPUs come back."""
    good, seconds = 0, []
    os.environ["PYTHONPATH"] = BENCHMARKS
    with cluster("xparl", samplers) as made:
        assert made is not None
        free_cpus(made, samplers)
        config = sleepers(made, samplers)
        model = make_model(spaces_of(config.env), config)
        weights = model.get_weights()
        for _ in range(times):
            start = time.monotonic()
            pool = make_pool(config, model, Weights(0, weights))
            try:
                collect_until_whole(pool, weights, samplers)
                seconds.append(time.monotonic() - start)
            finally:
                pool.close()
            good += seconds[-1] <= STAND_S and free_cpus(made, samplers) == samplers
    middle = np.median(seconds)
    return Row(
        f"actors_{samplers}", good, times,
        f"all stand after {middle:.0f} s (median), {max(seconds):.0f} s at most",
    )  # fmt: skip


def slots(times: int) -> Row:
    """Actors made and destroyed on busy cores, of which some answer their first ping too late."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    stood = 0
    try:
        with cluster("xparl", 4) as made:
            assert made is not None
            free_cpus(made, 4)
            parl = load_parl()
            parl.connect(made.flags[1])
            for number in range(times):
                stood += stands(parl.remote_class(Nothing), number % LATE_EVERY == 0)
            free = free_cpus(made, 4)
            learner.disconnect()
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    return Row(
        "slots", stood if free == 4 else 0, times,
        f"{free} of 4 CPUs free in the end; {times // LATE_EVERY} pings were late",
    )  # fmt: skip


class Nothing:
    """An actor that does nothing."""


Nothing.__module__ = "dppo_actor_nothing"  # PARL sends a class of no module by its value


def stands(remote: Any, late: bool) -> bool:
    """Make an actor and give it up again; whether it stood.

    Args:
        remote: the remote class.
        late: take the first answers to pings for late ones, for half a second.
    """
    found, patience = threading.Event(), learner.PING_TIMEOUT_S
    place = Placement(found.set)

    def make() -> None:
        with contextlib.suppress(GivenUp):
            remote(placement=place)

    maker = threading.Thread(target=make, daemon=True)
    if late:
        learner.PING_TIMEOUT_S = 0.0
    try:
        maker.start()
        found.wait(0.5 if late else 0.0)
    finally:
        learner.PING_TIMEOUT_S = patience
    stood = found.wait(CPUS_BACK_S)
    maker.join(CPUS_BACK_S)  # until it has been made
    place.give_up()
    return stood


def registered(cpus: int, times: int) -> Row:
    """So many CPUs at one master: whether it stays whole, and whether a run works there."""
    good, seconds = 0, []
    for _ in range(times):
        start = time.monotonic()
        with cluster("xparl", cpus) as made, tempfile.TemporaryDirectory() as folder:
            assert made is not None
            all_free = free_cpus(made, cpus) == cpus
            seconds.append(time.monotonic() - start)
            run = Training(
                Path(folder), "--env", "CartPole-v1", "--samplers", "2", "--train_total_steps",
                "20000", "--compile", "off", *made.flags,
            )  # fmt: skip
            good += all_free and run.process.wait(RUN_S) == 0 and free_cpus(made, cpus) == cpus
    return Row(f"cpus_{cpus}", good, times, f"all registered after {max(seconds):.0f} s")


def long_run(samplers: int, times: int) -> Row:
    """A run of ten minutes with many actors on sleeping environments: no error, no lost CPU."""
    good, measured = 0, []
    os.environ["PYTHONPATH"] = BENCHMARKS
    for _ in range(times):
        with cluster("xparl", samplers) as made, tempfile.TemporaryDirectory() as folder:
            assert made is not None
            free_cpus(made, samplers)
            run = Training(
                Path(folder), "--env", "sleeping_env:Sleeping", "--env_num", str(samplers),
                "--samplers", str(samplers), "--batch_size", str(64 * samplers), "--minibatch_size",
                str(64 * samplers), "--train_total_steps", "1e9", *made.flags,
            )  # fmt: skip
            run.wait_for(lambda run=run: len(run.rows()) > 3, 300)
            first, start = run.rows()[-1], time.monotonic()
            time.sleep(RUN_S)
            last, seconds = run.rows()[-1], time.monotonic() - start
            wrong = run.terminate()[1]
            rate = (last["global_step"] - first["global_step"]) / seconds
            lost = samplers - free_cpus(made, samplers)
            good += not wrong and last["restarts"] == last["rows_lost"] == lost == 0
            measured.append(f"{last['restarts']} restarts, {lost} lost CPUs, {rate:,.0f} steps/s")
    return Row(f"samplers_{samplers}", good, times, "; ".join(measured))


CROWDS = {
    "actors_64": (functools.partial(actors, 64), 10),
    "slots": (slots, 200),
    "cpus_256": (functools.partial(registered, 256), 1),
    "samplers_32": (functools.partial(long_run, 32), 1),
}
"""Experiments by name, and how often each is done by default."""
