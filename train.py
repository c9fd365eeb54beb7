"""Train an agent with distributed PPO: `python train.py --env HalfCheetah-v4 --continuous_action`.

The loop is `train`. With policy_lag 1 both sides always work: while the learner does update k on
fragment k, the samplers collect fragment k+1 under the weights of update k-1. How far samplers and
learner may be apart is `training/collector.py`'s concern.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import TYPE_CHECKING

from training.signals import Stopped

if TYPE_CHECKING:
    from envs import Spaces
    from settings.config import Config
    from training.run import Run

# Heavy modules are imported where they are used, so that a mistyped flag is answered at once.
NEEDED = (
    "parl",
    "torch",
    "gymnasium",
    "ale_py",
    "numba",
    "tyro",
    "yaml",
    "visualdl",
    "safetensors",
)


def train(run: Run) -> str:
    """Train until it is over; return why: finished, solved, max_minutes, sigterm or sigint."""
    try:
        for rollout in run.collect():
            start = time.perf_counter()
            metrics = run.learn(rollout)
            times = {**run.collector.times, "time/learn": time.perf_counter() - start}
            over = run.record(rollout, metrics, times)
            if over is not None:
                return over
    except Stopped as stop:
        return stop.reason
    return "finished"


def check(config: Config) -> Spaces:
    """Ask the environment and the cluster whether they can do what the settings say.

    Raises:
        UserError: where they cannot.
    """
    from gymnasium import spaces

    from envs import spaces_of
    from networks.trunks import refuse_unfit
    from settings.config import ConfigError

    env_spaces = spaces_of(config.env, **config.env_options())
    if config.continuous_action and not isinstance(env_spaces.action, spaces.Box):
        raise ConfigError(
            f"continuous_action was given, but env {config.env} has discrete actions,"
            f" {env_spaces.action}: leave the flag out"
        )
    refuse_unfit(env_spaces, config)
    address = config.xparl_addr or config.ray_address
    if address is not None and config.samplers != 0:
        if config.xparl_addr is not None:
            from cluster.engines.xparl import choose_key, cluster_cpus

            choose_key(config.key, address)
        else:
            from cluster.engines.ray import cluster_cpus
        adds = "xparl connect" if config.xparl_addr is not None else "ray start --address"
        wanted = config.samplers or 1 if config.wait_for_cpus is None else 0
        free, total = cluster_cpus(address, wanted)
        if free < wanted:
            raise ConfigError(
                f"samplers is {wanted}, but the cluster at {address} has {total} CPUs, {free} of"
                f" them free: give fewer --samplers, or add CPUs with `{adds}`"
            )
        if config.samplers is None:
            config.samplers = config.default_samplers(max(1, free))
    return env_spaces


def main() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"train.py: {', '.join(missing)} not installed: run `make venv`, then"
              f" `.venv/bin/python train.py`", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    from common.errors import UserError
    from settings.rules import remarks
    from settings.sources import defaults, parse

    try:
        config = parse(sys.argv[1:])
        env_spaces = check(config)
        for remark in remarks(config, defaults(config), env_spaces):
            print(remark)

        from learning.hardware import choose_device
        from training.folder import run_folder
        from training.run import Run

        device = choose_device(config)
        with run_folder(config) as run_dir, Run(config, run_dir, device, env_spaces) as run:
            for remark in filter(None, (run.agent.alg.note, run.remark)):
                run.report.say(remark)
            run.report.say(
                f"run folder {run_dir} ({run.pool.name} pool, {run.pool.samplers} samplers, {device});"
                f" curves: visualdl --logdir {run_dir.parent} --language en"
            )
            run.exit_reason = train(run)
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before the run had begun
        sys.exit(130)


if __name__ == "__main__":
    main()
