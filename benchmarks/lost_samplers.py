"""Experiments of chaos.py in which samplers are lost all the time."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from disturbed import Row, Training

from common.sources import ROOT

CRASHES_END_S = 1800.0
KILL_EVERY_S = 10.0
KILLS_S = 300.0
STRAGGLER_S = 30.0
EPISODE_S = 2.0  # of the sleeping environment
# the preset of CartPole-v1, whose environment has another name here. At lag 0 no fragment is collected
# that nobody waits for any more, in which a failure is no restart.
CARTPOLE = (
    "--env", "tests.faulty_env:Limited", "--policy_lag", "0", "--env_num", "8", "--samplers", "4", "--batch_size", "256",
    "--minibatch_size", "256", "--update_epochs", "20", "--gamma", "0.98", "--gae_lambda", "0.8",
    "--learning_rate", "0.001", "--clip_schedule", "linear", "--train_total_steps", "300000",
    "--test_every_steps", "1000000", "--test_episodes", "1",
)  # fmt: skip


def by_chance(fault: str, times: int) -> Row:
    """Environments that fail at each step with probability .001, while CartPole is learned.

    Every failure that the environments count themselves is to be one restart, and no more; the
    policy is then scored in environments that do not fail.
    """
    measured, good = [], 0
    for seed in range(1, times + 1):
        with tempfile.TemporaryDirectory() as folder:
            faults = Path(folder) / "faults"
            faults.mkdir()
            (faults / "chance").write_text(f"{fault} 0.001")
            os.environ["FAULTS_FOLDER"] = str(faults)
            run = Training(Path(folder), *CARTPOLE, "--seed", str(seed), "--sampler_timeout", "2")
            start = time.monotonic()
            code = run.process.wait(CRASHES_END_S)
            seconds = time.monotonic() - start
            crashes = len((faults / "counted").read_bytes())
            restarts = int(run.rows()[-1]["restarts"])
            (faults / "chance").unlink()
            score = greedy(run.run_dir) if code == 0 else float("nan")
            good += code == 0 and restarts == crashes and score >= 475
            measured.append(
                f"{restarts} restarts for {crashes} failures in {seconds:.0f} s, greedy {score:.0f}"
            )
    return Row(f"by_chance_{fault}", good, times, "; ".join(measured))


def greedy(run_dir: Path) -> float:
    """The mean return of 20 episodes of a run's policy."""
    done = subprocess.run(
        [sys.executable, "evaluate.py", str(run_dir), "--episodes", "20", "--trust"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"return mean (-?[\d.,]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1].replace(",", ""))


class Speed(NamedTuple):
    steps_per_second: float
    episode_return: float


def trained(folder: Path, kill_every_s: float | None) -> Speed:
    """HalfCheetah for `KILLS_S` from when it has compiled, and its return at the end."""
    generator = random.Random(0)
    run = Training(folder, "--env", "HalfCheetah-v4", "--train_total_steps", "1e9")
    run.wait_for(lambda: len(run.rows()) > 20, 120)
    start, first = time.monotonic(), run.rows()[-1]
    due = start + (kill_every_s or KILLS_S)
    while time.monotonic() - start < KILLS_S:
        time.sleep(0.2)
        if kill_every_s is not None and time.monotonic() > due:
            due += kill_every_s
            generator.choice(samplers_of(run)).kill()
    seconds, last = time.monotonic() - start, run.rows()[-1]
    run.terminate()
    return Speed(
        (last["global_step"] - first["global_step"]) / seconds, last["episode_return_mean"]
    )


def samplers_of(run: Training) -> list[psutil.Process]:
    """The processes that were forked, and not the one that forks them."""
    processes = psutil.Process(run.process.pid).children(recursive=True)
    return [process for process in processes if not process.children()]


def random_kills(times: int) -> Row:
    """A random sampler of the HalfCheetah preset is killed every 10 s for 5 minutes."""
    kept, returns = [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            undisturbed = trained(Path(one), None)
            disturbed = trained(Path(other), KILL_EVERY_S)
        kept.append(disturbed.steps_per_second / undisturbed.steps_per_second)
        returns.append(
            f"return {disturbed.episode_return:,.0f} beside {undisturbed.episode_return:,.0f}"
        )
    good = sum(share >= 0.9 for share in kept)
    shares = ", ".join(f"{share:.1%}" for share in kept)
    return Row("random_kills", good, times, f"{shares} of the steps/s; {'; '.join(returns)}")


def straggler(times: int) -> Row:
    """One environment in eight takes four times as long: with all samplers, and with 80% of them."""
    measured, good = [], 0
    for _ in range(times):
        everyone, most = with_straggler(1.0), with_straggler(0.8)
        good += most.steps_per_second > everyone.steps_per_second
        measured.append(
            f"{everyone.steps_per_second:.0f} steps/s with all samplers, {most.steps_per_second:.0f}"
            f" with 80% of them, of whose steps {most.lost_share:.1%} are lost"
        )
    return Row("straggler", good, times, "; ".join(measured))


class Fragments(NamedTuple):
    """`lost_share`: of all steps that were asked for."""

    steps_per_second: float
    lost_share: float


def with_straggler(share: float) -> Fragments:
    """Eight samplers of one environment each, of which one becomes slow."""
    with tempfile.TemporaryDirectory() as folder:
        slow = Path(folder) / "slow"
        os.environ["SLOW_SAMPLER"] = str(slow)
        run = Training(
            Path(folder), "--env", "benchmarks.sleeping_env:Straggling", "--env_num", "8",
            "--samplers", "8", "--rollout_steps", "16", "--batch_size", "128", "--minibatch_size",
            "128", "--update_epochs", "1", "--straggler_share", str(share), "--train_total_steps",
            "1e9",
        )  # fmt: skip
        run.wait_for(lambda: len(run.rows()) > 3, 120)
        slow.write_text(str(samplers_of(run)[0].pid))
        time.sleep(2 * EPISODE_S)
        start, first = time.monotonic(), run.rows()[-1]
        time.sleep(STRAGGLER_S)
        seconds, last = time.monotonic() - start, run.rows()[-1]
        run.terminate()
    steps = last["global_step"] - first["global_step"]
    lost = last["rows_lost"] - first["rows_lost"]
    return Fragments(steps / seconds, lost / (steps + lost))
