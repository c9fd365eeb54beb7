"""One run: its parts, its counters, and when it is over."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from agent import NotFinite, PPOAgent
from algorithm import PPO
from cluster.make import make_pool
from common import checkpoint
from common.cores import usable_cores
from common.errors import UserError
from envs import Spaces
from model import make_model
from rollout import Rollout
from settings.config import Config
from settings.sources import load_run
from training.collector import Collector, Start
from training.endings import end_children, reason_to_end, solves
from training.evaluations import Evaluations
from training.folder import Place
from training.report import OUTPUT, Report
from training.resets import plan_resets
from training.restoring import not_saved, restored
from training.signals import StopSignals
from training.summary import note_resume, weights_digest, write_summary

_REFUSED_LIMIT = 5  # updates in a row that came to NaN or infinity: the next ones would too


class Run:
    """Agent, collector, evaluations and report of one run, wired, and what it counts.

    Used as a context: its end, however it comes, saves, writes the summary, and leaves no process
    and no open file behind. Where the disk takes no more, the run goes on (`training.writes`).

    Args:
        config: the settings, checked.
        run_dir: the run's folder, with its config.yaml.
        device: the learner's.
        env_spaces: the environment's.

    Attributes:
        global_step: environment steps taken, those of dropped fragments included.
        remark: what the user is to know about resuming this run, or "".
        exit_reason: why the run ended, set by the one who drives it.
    """

    def __init__(self, config: Config, run_dir: Path, device: str, env_spaces: Spaces):
        self.config, self.run_dir, self.device = config, run_dir, device
        self.checkpoints = run_dir / "checkpoints"
        torch.set_num_threads(config.torch_threads or usable_cores())
        model = make_model(env_spaces, config).to(device)
        self.agent = PPOAgent(PPO(model, config), config)
        self.global_step = 0
        self._dropped_steps = 0  # of the pool's, how many are in global_step
        self._alarms = 0  # of the pool's, after how many the run was saved
        self.exit_reason = "error"
        self._refused = self._refused_in_a_row = 0  # updates
        self._opened: contextlib.ExitStack | None = None  # until all parts of the run stand
        saved = restored(config, run_dir, self.agent)
        self._is_new = saved is None
        if saved is not None:
            self.global_step = saved.step
        self.signals = StopSignals(self._abort)
        with contextlib.ExitStack() as opened:
            self._place = Place(run_dir, config)
            opened.callback(self._place.close)
            self.report = Report(run_dir, config, self.global_step, saved and saved.state["report"])
            opened.callback(self.report.close)
            self.writes = self.report.writes
            weights = self.agent.weights()
            self.pool = make_pool(config, model, weights, self.report.say)
            opened.callback(self.pool.close)
            self.evaluations = Evaluations(
                config, self._place, weights, self.global_step, self.report.say, self.writes
            )
            opened.callback(self.evaluations.close)
            if saved is not None:
                self.evaluations.restore(saved.state)
            resets = plan_resets(config, env_spaces)
            self.remark = resets.remark
            self.collector = Collector(
                config, self.agent, self.pool, env_spaces.saves_state,
                None if saved is None else Start.of(saved), resets.every, self.signals.interrupting,
            )  # fmt: skip
            if config.resume is not None:  # only now: a resume that fails changes nothing
                note_resume(run_dir, load_run(run_dir), config)
            self._opened = opened.pop_all()
        self._update_end = self._saved = time.monotonic()
        # the end of the first update, which may have compiled [s], and the steps taken until then
        self._rate_from: tuple[float, int] | None = None

    def collect(self) -> Iterator[Rollout]:
        """The fragments of the run's updates; each is to be learned from before the next.

        A new run is saved before anything else, so that it can be resumed from then on.

        Raises:
            CannotWrite: where that is not possible: nothing is lost yet.
        """
        if self._is_new:
            self._write_checkpoint()
        self.agent.compile(self.pool.spec)
        if self.config.warms_up and self.global_step == 0:
            self._count(self.collector.warm_up())
        return self.collector.collect(lambda steps: self.progress(steps) < 1.0)

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Do one update; its metrics, or none where it was refused because of NaN or infinity.

        Raises:
            NotFinite: for a refused update where `nan` is stop, and for the fifth in a row.
        """
        try:
            metrics = self.agent.learn(rollout, self.progress())
        except NotFinite as error:
            self._refused_in_a_row += 1
            if self.config.nan == "stop" or self._refused_in_a_row == _REFUSED_LIMIT:
                raise
            self.report.say(f"an update was refused: {error}")
            self.agent.update += 1  # the weights and all else are as they were
            self._refused += 1
            return {}
        self._refused_in_a_row = 0
        return metrics

    def progress(self, steps: int = 0) -> float:
        """Share of the run that is over after so many more steps, in [0, 1]."""
        return min(1.0, (self.global_step + steps) / self.config.train_total_steps)

    def _count(self, rollout: Rollout) -> None:
        """Count a fragment, and the steps of fragments that were dropped meanwhile."""
        dropped = self.pool.dropped_steps
        self.global_step += rollout.steps + dropped - self._dropped_steps
        self._dropped_steps = dropped
        self.report.add_episodes(rollout.episodes)

    def record(
        self, rollout: Rollout, metrics: dict[str, float], times: dict[str, float]
    ) -> str | None:
        """Count an update, have its weights evaluated and saved where that is due, and report.

        Args:
            metrics: the update's.
            times: seconds spent on it: time/sample_wait, time/transfer and time/learn.

        Returns:
            why the run is over: finished, solved or max_minutes; None where it is not.
        """
        before = self.global_step
        self._count(rollout)
        line = self._line(self.global_step - before) | metrics | times
        over = reason_to_end(self.config, self.progress(), self.report)
        try:
            line |= self.evaluations.finished()
            if over is None and solves(self.config, line.get("eval/return_mean")):
                over = "solved"
            if over is None:
                self.evaluations.start(self.agent.weights, self.global_step)
            else:
                with self.signals.interrupting():
                    line |= self.evaluations.last(self.agent.weights(), self.global_step)
        finally:  # a signal may end the last evaluation, but the update has been done
            self.report.write(line | {"lost_evaluations": self.evaluations.lost})
        if over is None and self._save_is_due():
            self.save()
        return over

    def _line(self, steps: int) -> dict[str, Any]:
        """The counters after an update, which took so many steps."""
        now = time.monotonic()
        seconds, self._update_end = now - self._update_end, now
        self._rate_from = self._rate_from or (now, self.global_step)
        return {
            "update": self.agent.update,
            "global_step": self.global_step,
            "sps": steps / seconds,
            "dropped_fragments": self.pool.dropped,
            "dropped_steps": self.pool.dropped_steps,
            "dropped_episodes": self.pool.dropped_episodes,
            "samplers_alive": self.pool.samplers_alive,
            "restarts": self.pool.restarts,
            "rows_lost": self.pool.rows_lost,
            "refused_updates": self._refused,
        }

    def _save_is_due(self) -> bool:
        by_share = self.agent.update % self.config.updates_per_checkpoint == 0
        known, self._alarms = self._alarms, self.pool.alarms
        return (
            by_share
            or self._alarms > known
            or time.monotonic() - self._saved >= self.config.checkpoint_seconds
        )

    def save(self) -> None:
        """Write a checkpoint of the state after the last update; it is said where that fails."""
        self._saved = time.monotonic()  # where it fails, the next one is tried when it is due
        with self.writes.attempt("the checkpoint"):
            if self._place.restore():
                self.report.reopen()
                self.report.say(f"run folder {self.run_dir} was removed: it is made anew")
            self._write_checkpoint()
        self.evaluations.save_best()

    def _write_checkpoint(self) -> None:
        """Write a checkpoint of the state after the last update.

        Raises:
            CannotWrite: where that is not possible.
        """
        arrays, state = self.agent.state()
        start = self.collector.start(state["update"])
        arrays |= start.arrays()
        state |= {
            "behaviour_version": start.weights.version,
            "global_step": self.global_step,
            "best": self.evaluations.best,
            "last_evaluation": self.evaluations.last_mean,
            "report": self.report.state(),
        }
        checkpoint.save(self.checkpoints, state["update"], arrays, state)

    def summarize(self) -> None:
        """Write summary.json and say how the run ended."""
        mean_return, _ = self.report.means()
        rate = 0.0
        if self._rate_from is not None:
            then, step = self._rate_from
            rate = (self.global_step - step) / max(self._update_end - then, 1e-9)
        seconds = round(self.report.time_s, 3)
        shown = "none" if mean_return is None else f"{mean_return:.1f}"
        self.report.say(
            f"{self.exit_reason}: {self.global_step:,} steps in {seconds:.1f} s, {rate:,.0f}"
            f" steps/s, mean return of the last episodes {shown}; {self.run_dir}"
        )
        content = {
            "global_step": self.global_step,
            "time_s": seconds,
            "sps": rate,
            "train_return_last100": mean_return,
            "eval_return_mean": self.evaluations.last_mean,
            "eval_return_best": self.evaluations.best,
            "weights_sha256": weights_digest(self.agent),
            "exit_reason": self.exit_reason,
            "samplers": self.pool.samplers,
            "pool": self.pool.name,
            "device": self.device,
        }
        with self.writes.attempt("summary.json"):
            self._place.check()
            write_summary(self.run_dir, content)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        """Save, summarise and close; where one of them fails, the others are done nevertheless.

        Raises:
            UserError: where the run's last state could not be saved, and no other error ends it.
        """
        self.signals.ignore()
        with contextlib.ExitStack() as last:  # the last one pushed is done first
            assert self._opened is not None
            last.push(self._opened)
            last.callback(self.summarize)
            last.callback(self.save)  # an update that failed has left no trace
        self.writes.failing.pop(OUTPUT, None)  # it is no part of what is saved
        if not self.writes.failing:
            return
        lost = not_saved(self.run_dir, self.writes.failing)
        if error is None:
            raise UserError(lost)
        print(f"train.py: {lost}", file=sys.stderr)

    def _abort(self, reason: str) -> NoReturn:
        """End now, from within an update, in the state from before it."""
        code = 130  # the parts do not stand yet: nothing is to be saved
        if self._opened is not None:
            self.exit_reason, code = reason, 0
            try:
                self.__exit__()
            except UserError as error:
                print(f"train.py: {error}", file=sys.stderr)
                code = 2
        end_children()
        sys.stdout.flush()
        os._exit(code)
