"""How many cores of sampling microRTS needs, with a learner that only sleeps: `microrts_cores.py`.

A sampler a core, each with a JVM of its own, plays 16x16 against CoacAI under a freshly made GridNet.
The learner sleeps for as long as a GPU would compute: multiply-adds of the update, counted by torch, at
an assumed rate. Prints steps/s by samplers, what each process uses of a core, and the cores that a rate
would need if each did as much as the last one measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.make import make_pool
from envs import spaces_of
from model import ActorCritic, make_model
from rollout import Weights
from settings.config import Config
from settings.sources import preset

ENV, OPPONENT, GAMES = "microrts-16x16", "coacAI", 24
WARM_UP = 2  # fragments: the machines' own compilers are at work
TFLOPS = 20.0  # assumed of a GPU: 2% of an H100's peak in bfloat16, as these layers are small
FORWARD_AND_BACKWARD = 3  # forward passes that a gradient step costs


def update_s(model: ActorCritic, config: Config, tflops: float) -> float:
    """Seconds of an update at an assumed rate, where every cell of a third of the map may act."""
    rows = 64
    cells = model.distribution.cells
    obs = torch.zeros(rows, *model.spaces.observation.shape)
    mask = torch.zeros(rows, cells, model.distribution.env_mask_size // cells, dtype=torch.bool)
    mask[:, : cells // 3] = True
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(obs, mask.flatten(1))
    passes = config.times_learned * FORWARD_AND_BACKWARD
    return counter.get_total_flops() / rows * config.steps_per_update * passes / tflops / 1e12


def measure(samplers: int, seconds: float, tflops: float) -> tuple[float, float, float, float]:
    """Steps/s; the share of a core that a sampler and the learner use; the update's seconds."""
    config = preset(ENV)
    config.opponents, config.env_num, config.samplers = (OPPONENT,), GAMES, samplers
    model = make_model(spaces_of(config.env, **config.env_options()), config)
    sleep_s, weights = update_s(model, config, tflops), model.get_weights()
    pool = make_pool(config, model, Weights(0, weights))
    try:
        pool.request(Weights(0, weights), 0, True)
        steps, fragment, start, before = 0, 0, 0.0, 0.0
        while fragment <= WARM_UP or time.perf_counter() - start < seconds:
            rollout = pool.gather()
            fragment += 1
            pool.request(Weights(fragment, weights), fragment, False)
            time.sleep(sleep_s)
            if fragment == WARM_UP:
                steps, start, before = 0, time.perf_counter(), used(children=True)
                mine = used(children=False)
            elif fragment > WARM_UP:
                steps += rollout.steps
        elapsed = time.perf_counter() - start
        of_samplers = (used(children=True) - before) / elapsed / samplers
        return steps / elapsed, of_samplers, (used(children=False) - mine) / elapsed, sleep_s
    finally:
        pool.close()


def used(*, children: bool) -> float:
    """Seconds of processor that this process has used, or its children together."""
    me = psutil.Process(os.getpid())
    processes = me.children(recursive=True) if children else [me]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description="microRTS: cores of sampling beside a GPU.")
    parser.add_argument("--samplers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--tflops", type=float, default=TFLOPS)
    parser.add_argument("--wanted", type=float, default=1900.0)
    arguments = parser.parse_args()
    for samplers in arguments.samplers:
        rate, of_sampler, of_learner, sleep_s = measure(
            samplers, arguments.seconds, arguments.tflops
        )
        print(f"{samplers} samplers: {rate:,.0f} steps/s, {of_sampler:.2f} cores a sampler,"
              f" {of_learner:.2f} the learner, which sleeps {sleep_s:.2f} s an update;"
              f" {arguments.wanted:,.0f} steps/s need {arguments.wanted / rate * samplers:.1f}"
              f" such samplers", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
