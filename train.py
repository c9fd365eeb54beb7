"""Train an agent with distributed PPO: `python train.py --env HalfCheetah-v4 --continuous_action`.

The loop is `train`. With policy_lag 1 both sides always work: while the learner does update k on
fragment k, the samplers collect fragment k+1 under the weights of update k-1. How far samplers and
learner may be apart is `training/collector.py`'s concern.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import TrainerLost
from training.signals import Stopped

if TYPE_CHECKING:
    from envs import Spaces
    from learning.trainers import Trainers
    from learning.undo import State
    from settings.config import Config
    from training.trainer import Trainer

# Heavy modules are imported where they are used, so that a mistyped flag is answered at once.
NEEDED = (
    "parl",
    "torch",
    "gymnasium",
    "ale_py",
    "numba",
    "yaml",
    "visualdl",
    "safetensors",
    "crc32c",
    "psutil",
    "pynvml",
    "rich",
)


def train(run: Trainer) -> str:
    """Train until it is over; return why: finished, solved, max_minutes, sigterm, sigint or sighup."""
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
    except TrainerLost as lost:
        return run.agreement.without_others(lost)
    return "finished"


def check(config: Config) -> Spaces:
    """Ask the environment and the cluster whether they can do what the settings say.

    Raises:
        UserError: where they cannot.
    """
    from gymnasium import spaces

    from envs import spaces_of
    from networks.rules import refuse_unfit
    from settings.config import ConfigError
    from training.trackers.make import refuse_missing

    refuse_missing(config)
    at_cluster = config.xparl_addr is not None or config.ray_address is not None
    env_spaces = spaces_of(config.env, resets=not at_cluster, **config.env_options())
    if config.continuous_action and not isinstance(env_spaces.action, spaces.Box):
        raise ConfigError(
            f"continuous_action was given, but env {config.env} has discrete actions,"
            f" {env_spaces.action}: leave the flag out"
        )
    refuse_unfit(env_spaces, config)
    if config.samplers != 0 and at_cluster:
        from cluster.make import choose_samplers

        choose_samplers(config)
    return env_spaces


def begin(
    config: Config | None, trainers: Trainers, opened: ExitStack
) -> tuple[Config, Path, Spaces]:
    """The run's settings, its folder and its environment's spaces, which the first trainer looks after.

    Args:
        config: the settings that were given, where they have been read.
        opened: keeps the folder for as long as the run lives.

    Raises:
        UserError: where it cannot run.
    """
    from envs import spaces_of
    from settings.config import Config
    from settings.rules import remarks
    from settings.sources import defaults, parse_again
    from training.folder import run_folder

    env_spaces: Spaces | None = None

    def first() -> State:
        nonlocal env_spaces
        given = config or parse_again(sys.argv[1:], trainers.run_dir())
        env_spaces = check(given)
        for remark in remarks(given, defaults(given), env_spaces):
            print(remark)
        run_dir = opened.enter_context(run_folder(given))
        return {}, {"config": given.to_dict(), "run_dir": str(run_dir)}

    state = trainers.from_first(first)
    assert state is not None
    shared = Config(**state[1]["config"] | {"run_dir": state[1]["run_dir"]})
    env_spaces = env_spaces or spaces_of(shared.env, **shared.env_options())
    return shared, Path(state[1]["run_dir"]), env_spaces


def run(config: Config | None) -> None:
    """Be a trainer of the run, or the only one.

    Raises:
        UserError: where it cannot go on.
    """
    from cluster.nursery import NURSERY

    # now, before anything opens files or starts threads
    NURSERY.split_off(["cluster.engines.local", "evaluation.process"])
    from common import launched
    from learning.hardware import choose_device, refuse_unlike
    from learning.hogwild import Hogwild
    from learning.linked import Linked
    from learning.trainers import Trainers
    from training.device_check import checked
    from training.run import Run
    from training.trainer import Trainer

    with ExitStack() as opened:
        if config is None:
            trainers = (Linked if launched.memory() is None else Hogwild).as_launched()
        elif config.store is None:
            trainers = Trainers()
        else:
            from cluster.store.make import run_at, server
            from training.store_trainers import StoreTrainers

            url = launched.store_url() or opened.enter_context(server(config.store))
            trainers = StoreTrainers(partial(run_at, url, config, print), config)
        opened.callback(trainers.close)
        config, run_dir, env_spaces = begin(config, trainers, opened)
        device = checked(config, env_spaces, choose_device(config), print)
        refuse_unlike(config, device, trainers)
        trainers.use(device)
        kind = Run if trainers.leads else Trainer
        with kind(config, run_dir, device, env_spaces, trainers) as run:
            if trainers.leads:
                mode = "Hogwild " if config.trainer_mode == "hogwild" else ""
                together = f", {config.trainers} {mode}trainers" if config.trainers > 1 else ""
                samplers = _counted(run.pool.samplers, "sampler")
                threads = _counted(run.threads, "thread")
                for remark in filter(None, (run.agent.alg.note, run.remark)):
                    run.say(remark)
                curves = f"; curves: {run.report.pages}" if run.report.pages else ""
                run.say(
                    f"run folder {run_dir} ({run.pool.name} pool, {samplers},"
                    f" {device} with {threads}{together}){curves}"
                )
            run.exit_reason = train(run)
            if trainers.leads:
                run.film()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def main() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"train.py: {', '.join(missing)} not installed: run `make venv`, then"
              f" `.venv/bin/python train.py`", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    from common import launched
    from common.errors import UserError
    from common.terminal import print_anything
    from settings.sources import parse
    from settings.store_url import hide_passwords

    print_anything()
    hide_passwords(sys.argv)  # they are written into the run's folder, and passed on
    hide_passwords(sys.orig_argv)
    try:
        config = None
        if launched.world() is not None:
            launched.end_with_launcher()
        else:
            config = parse(sys.argv[1:])
            if launched.run_id() is not None:
                launched.end_with_launcher()
            elif config.trainers > 1:
                from training.launch import launch

                sys.exit(launch(config))
        run(config)
    except UserError as error:
        who = f"trainer {launched.rank()}: " if launched.rank() > 0 else ""
        if str(error):
            print(f"train.py: {who}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before the run had begun
        sys.exit(130)


if __name__ == "__main__":
    main()
