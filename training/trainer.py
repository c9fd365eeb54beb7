"""One trainer of a run: it learns from its own environments."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch

from agent import NotFinite, PPOAgent
from algorithm import PPO
from cluster.make import make_pool
from cluster.pool import SamplerPool
from common.errors import TrainerLost, UserError
from envs import Spaces
from learning.hardware import choose_threads
from learning.trainers import Joined, Trainers
from model import make_model
from rollout import Rollout
from settings.config import Config
from training.agreement import Agreement
from training.collector import Collector, Start
from training.compiling import Compiling
from training.endings import end_children
from training.resets import plan_resets
from training.restoring import restored_by_all
from training.shared_pool import SharedPool
from training.signals import StopSignals

_REFUSED_LIMIT = 5  # updates in a row that came to NaN or infinity: the next ones would too


class Trainer:
    """Agent, samplers and counters of one trainer. The first one is a `training.run.Run`.

    Used as a context: its end leaves no process behind.

    Args:
        config: the settings, checked.
        run_dir: the run's folder.
        device: the learner's.
        env_spaces: the environment's.
        trainers: all of them. Default: there is one.

    Attributes:
        global_step: environment steps taken by all trainers, those of dropped fragments included.
        threads: in which it learns.
        remark: what the user is to know about resuming this run, or "".
        exit_reason: why the run ended, set by the one who drives it.
        agreement: on the run's end, with the other trainers.
    """

    GRACE_S = (
        8.0  # for an update that a signal comes into: the first trainer, which saves, has less
    )

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        device: str,
        env_spaces: Spaces,
        trainers: Trainers | None = None,
    ):
        self.config, self.run_dir, self.device = config, run_dir, device
        self.trainers = trainers = trainers or Trainers()
        threads = choose_threads(config, device, trainers.size)
        torch.set_num_threads(threads.in_operators)
        self.threads = threads.most
        self._spaces = env_spaces
        model = make_model(env_spaces, config).to(device)
        self._compiling = Compiling(config, device, trainers.leads, self.say)
        self.agent = PPOAgent(PPO(model, config, trainers, self._compiling.here), config)
        self.global_step = 0
        self._dropped_steps = 0  # of the pool's, how many are in global_step
        self.exit_reason = "error"
        self._refused = self._refused_in_a_row = 0  # updates
        self._opened: contextlib.ExitStack | None = None  # until all parts of the run stand
        self._saved = restored_by_all(config, run_dir, self.agent, trainers)
        if self._saved is not None:
            self.global_step = self._saved.step
        self.signals = StopSignals(self._abort, self.GRACE_S)
        self.agreement = Agreement(trainers, self.agent, run_dir, self.signals)
        trainers.watch(self._end_alone)
        with contextlib.ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack) -> None:
        """Make the parts of the run that are to be closed at its end."""
        self._start_samplers(opened)

    def _start_samplers(self, opened: contextlib.ExitStack) -> None:
        opened.callback(self._compiling.close)
        config, saved, trainers = self.config, self._saved, self.trainers
        self.pool: SamplerPool = self._make_pool()
        opened.callback(self.pool.close)
        if trainers.size > 1:
            self.pool = SharedPool(self.pool, trainers)
        resets = plan_resets(config, self._spaces)
        self.remark = resets.remark
        # several trainers stop together, at the end of an update
        waiting = self.signals.interrupting if trainers.size == 1 else contextlib.nullcontext
        self.collector = Collector(
            config, self.agent, self.pool,
            # of a part of the environments nobody else could go on
            self._spaces.saves_state and config.trainer_mode == "synchronous",
            None if saved is None else Start.of(saved), resets.every, waiting,
        )  # fmt: skip

    def _make_pool(self) -> SamplerPool:
        config, agent, trainers = self.config, self.agent, self.trainers
        if config.store is not None:
            from training.store_trainers import StoreTrainers  # its packages take a moment

            assert isinstance(trainers, StoreTrainers)
            return trainers.open_pool(config, self.run_dir, agent, self.global_step, self.say)
        weights = agent.weights()
        return make_pool(config, agent.model, weights, self.say, trainers.envs(config))

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"trainer {self.trainers.rank}: {text}", flush=True)

    def collect(self) -> Iterator[Rollout]:
        """The fragments of the run's updates; each is to be learned from before the next."""
        agent, trainers = self.agent, self.trainers
        if not self._compiling.beside:  # otherwise the first update asks for the compiled step
            agent.compile(self.pool.spec)
        joined = trainers.join(agent.shared())
        if joined is not None:
            agent.update, self.global_step = joined  # so that no noise comes again
            self.collector.begin_anew()
        elif self.config.warms_up and self.global_step == 0:
            with trainers.updating(agent):
                warm_up = self.collector.warm_up()
            self._count(warm_up, self.collector.times)
        trainers.share(Joined(agent.update, self.global_step))
        return self.collector.collect(lambda steps: self.progress(steps) < 1.0)

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Do one update; its metrics, or none where it was refused because of NaN or infinity.

        Raises:
            NotFinite: for a refused update where `nan` is stop, and for the fifth in a row.
        """
        self._compiling.poll(self.agent)
        try:
            with self.trainers.updating(self.agent):
                metrics = self.agent.learn(rollout, self.progress())
        except NotFinite as error:
            self._refused_in_a_row += 1
            if self.config.nan == "stop" or self._refused_in_a_row == _REFUSED_LIMIT:
                raise
            self.say(f"an update was refused: {error}")
            self.agent.update += 1  # the weights and all else are as they were
            self._refused += 1
            return {}
        self._refused_in_a_row = 0
        return metrics

    def progress(self, steps: int = 0) -> float:
        """Share of the run that is over after so many more steps, in [0, 1]."""
        return min(1.0, (self.global_step + steps) / self.config.train_total_steps)

    def _count(self, rollout: Rollout, times: dict[str, float]) -> None:
        """Count a fragment, and the steps of fragments that were dropped meanwhile."""
        dropped = self.pool.dropped_steps
        steps = rollout.steps + dropped - self._dropped_steps
        self.global_step = self.trainers.count(self.global_step, steps, times)
        self._dropped_steps = dropped

    def record(
        self, rollout: Rollout, metrics: dict[str, float], times: dict[str, float]
    ) -> str | None:
        """Count an update.

        Args:
            metrics: the update's.
            times: seconds spent on it: time/sample_wait, time/transfer and time/learn.

        Returns:
            why the run is over: see `Agreement.decide`.
        """
        self._count(rollout, times)
        return self.agreement.decide(None)

    def __enter__(self):
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        """Close the parts."""
        self.signals.ignore()
        self.trainers.end_watch()
        assert self._opened is not None
        self._opened.close()

    def _end_alone(self, why: str) -> NoReturn:
        """End now, from another thread: the one that works here may wait for ever."""
        with contextlib.suppress(OSError):
            print(f"train.py: {why}{self.agreement.way_on}", file=sys.stderr, flush=True)
        end_children()
        os._exit(TrainerLost.exit_code)

    def _abort(self, reason: str) -> NoReturn:
        """End now, from within an update, in the state from before it."""
        code = 130  # the parts do not stand yet: nothing is to be saved
        try:
            if self._opened is not None:
                self.trainers.note_stop(reason)
                self.exit_reason, code = reason, 1
                self.__exit__()
                code = 0
        except UserError as error:
            code = 2
            print(f"train.py: {error}", file=sys.stderr)
        except BaseException:  # whatever it was, this update must not go on
            traceback.print_exc()
        finally:
            try:
                end_children()
                sys.stdout.flush()
            finally:
                os._exit(code)
