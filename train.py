"""Train an agent with distributed PPO: `python train.py --env HalfCheetah-v4 --continuous_action`.

The loop is `train`. With policy_lag 1 both sides always work: while the learner does update k on
fragment k, the samplers collect fragment k+1 under the weights of update k-1. With policy_lag 2 and
more the pool never rests: a request hands it newer weights, and `gather` takes what has arrived.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envs import Spaces
    from settings.config import Config
    from training.run import Run

# What is heavy to import is imported where it is used, so that a mistyped flag is answered at once.
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

WARM_UP_FRAGMENT = 2**32  # a number that no update has


def train(run: Run) -> str:
    """Train until it is over; return why: finished, solved, max_minutes, sigterm or sigint."""
    from training.run import Stopped

    agent, pool, lag = run.agent, run.pool, run.config.policy_lag
    try:
        agent.compile(pool.spec)
        if run.needs_warm_up():
            pool.request(run.behaviour, WARM_UP_FRAGMENT, reset=True)
            with run.signals.interrupting():
                run.warm_up(pool.gather())
        while (progress := run.progress()) < 1.0:
            update, start = agent.update, time.perf_counter()
            if lag != 1 or update == run.first_update:
                pool.request(run.behaviour, update, run.resets_before(update))
            with run.signals.interrupting():
                rollout = pool.gather()
            gathered = time.perf_counter()
            if lag == 1:
                run.behaviour = agent.weights()
                if run.progress(rollout) < 1.0:
                    pool.request(run.behaviour, update + 1, run.resets_before(update + 1))
            requested = time.perf_counter()
            metrics = agent.learn(rollout, progress)
            learned = time.perf_counter()
            if lag != 1:
                run.behaviour = agent.weights()
            times = {
                "sample_wait": gathered - start,
                "transfer": requested - gathered,
                "learn": learned - requested,
            }
            over = run.record(rollout, metrics, times)
            if over is not None:
                return over
            if run.saves_before(update + 1):
                run.save()
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
    from settings.config import ConfigError

    found = spaces_of(config.env, **config.env_options())
    if config.continuous_action and not isinstance(found.action, spaces.Box):
        raise ConfigError(
            f"continuous_action was given, but env {config.env} has discrete actions,"
            f" {found.action}: leave the flag out"
        )
    if config.xparl_addr is not None and config.samplers != 0:
        from cluster.engines.xparl import cluster_cpus

        wanted = config.samplers or 1
        free, total = cluster_cpus(config.xparl_addr, wanted)
        if free < wanted:
            raise ConfigError(
                f"samplers is {wanted}, but the cluster at {config.xparl_addr} has {total} CPUs,"
                f" {free} of them free: give fewer --samplers, or add CPUs with `xparl connect`"
            )
        if config.samplers is None:
            config.samplers = config.default_samplers(free)
    return found


def prepare_folder(config: Config) -> Path:
    """The run's folder, with its config.yaml."""
    import yaml

    from settings.config import ConfigError
    from training.run import versions

    name = config.env.replace("/", "-").replace(":", "-")
    default = f"runs/{name}__s{config.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = Path(config.run_dir or default)
    if config.resume is None and (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"run_dir {run_dir} already holds a run: go on with it by --resume {run_dir}, or name"
            f" another folder"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "config": config.to_dict() | {"resume": None},
        "versions": versions(),
        "command": sys.argv,
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return run_dir


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
        found = check(config)
        for remark in remarks(config, defaults(config), found):
            print(remark)

        from learning.hardware import choose_device
        from training.run import Run

        device = choose_device(config)
        run_dir = prepare_folder(config)
        run = Run(config, run_dir, device, found)
        if run.agent.alg.note:
            run.report.say(run.agent.alg.note)
        try:
            run.report.say(
                f"run folder {run_dir} ({run.pool.name} pool, {run.pool.samplers} samplers, {device});"
                f" curves: visualdl --logdir {run_dir.parent} --language en"
            )
            reason = "error"
            try:
                reason = train(run)
            finally:
                run.save()  # whatever happened: an update that failed has left no trace
                run.summarize(reason)
        finally:
            run.close()
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the run had begun
        sys.exit(130)


if __name__ == "__main__":
    main()
