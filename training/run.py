"""One run: its parts, its counters, and when it is over."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from cluster.pool import counters
from common import checkpoint
from common.errors import UserError
from rollout import Rollout
from settings.sources import load_run
from training.agreement import WeightsDiffer
from training.endings import reached, reason_to_end, solves
from training.evaluations import Evaluations
from training.folder import Place
from training.report import OUTPUT, Report
from training.restoring import not_saved
from training.signals import SIGNALS, Stopped, StopSignals
from training.summary import note_resume, weights_digest, write_summary
from training.trainer import Trainer


class Run(Trainer):
    """The first trainer of a run, or the only one: it also reports, evaluates and saves.

    Used as a context: its end, however it comes, saves, writes the summary, and leaves no process
    and no open file behind. Where the disk takes no more, the run goes on (`training.writes`).
    """

    GRACE_S = StopSignals.GRACE_S

    def _open(self, opened: contextlib.ExitStack) -> None:
        config, saved, run_dir = self.config, self._saved, self.run_dir
        self.checkpoints = run_dir / "checkpoints"
        self._alarms = 0  # of the pool's, after how many the run was saved
        self._is_new = saved is None
        self._place = Place(run_dir, config)
        opened.callback(self._place.close)
        try:
            self.report = Report(
                run_dir, config, self.device, self.global_step, saved and saved.state["report"]
            )
        except OSError as error:
            raise UserError(
                f"{error.filename or run_dir} cannot be written: {error.strerror}"
            ) from None
        opened.callback(self.report.close)
        self.writes = self.report.writes
        self._start_samplers(opened)
        self.evaluations = Evaluations(
            config, self._place, self.agent.weights(), self.global_step, self.say, self.writes
        )
        opened.callback(self.evaluations.close)
        if saved is not None:
            self.evaluations.restore(saved.state)
        if config.resume is not None:  # only now: a resume that fails changes nothing
            note_resume(run_dir, load_run(run_dir), config)
            over = reason_to_end(config, self.progress(), self.report)
            for remark in reached(config, over, self.evaluations.last_mean):
                self.say(remark)
        self._update_end = self._saved_at = time.monotonic()
        self._share = self.agent.update // config.updates_per_checkpoint
        # the end of the first update, which may have compiled [s], and the steps taken until then
        self._rate_from: tuple[float, int] | None = None

    def say(self, text: str) -> None:
        self.report.say(text)

    def collect(self) -> Iterator[Rollout]:
        """The fragments of the run's updates; each is to be learned from before the next.

        A new run is saved before anything else, so that it can be resumed from then on.

        Raises:
            CannotWrite: where that is not possible: nothing is lost yet.
        """
        if self._is_new:
            self._write_checkpoint()
        return super().collect()

    def _count(self, rollout: Rollout, times: dict[str, float]) -> None:
        super()._count(rollout, times)
        self.report.add_episodes(rollout.episodes)

    def record(
        self, rollout: Rollout, metrics: dict[str, float], times: dict[str, float]
    ) -> str | None:
        """Count an update, have its weights evaluated and saved where that is due, and report.

        Args:
            metrics: the update's.
            times: seconds spent on it: time/sample_wait, time/transfer and time/learn.

        Returns:
            why the run is over: finished, solved or max_minutes, or the signal that has ended several
            trainers; None where it is not.
        """
        before = self.global_step
        self._count(rollout, times)
        # of several trainers this one has a share of the environments
        raw_sps = rollout.raw_sps * self.config.env_num / rollout.reward.shape[1]
        line = self._line(self.global_step - before) | {"raw_sps": raw_sps} | metrics | times
        over = reason_to_end(self.config, self.progress(), self.report)
        try:
            line |= self.evaluations.finished()
            if over is None and solves(self.config, line.get("eval/return_mean")):
                over = "solved"
            over = self.agreement.decide(over)
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

    def film(self) -> None:
        """Film the best policy, where the settings ask for it and no signal has ended the run."""
        if self.config.film and self.exit_reason not in SIGNALS:
            # the other trainers may be gone: where a resumed run was over already, nobody has ended the watch
            self.trainers.end_watch()
            self.save()  # filming takes minutes, in which the run may be killed
            with contextlib.suppress(Stopped), self.signals.interrupting():
                self.report.film(self.global_step)

    def _line(self, steps: int) -> dict[str, Any]:
        """The counters after an update, which took so many steps."""
        now = time.monotonic()
        seconds, self._update_end = now - self._update_end, now
        self._rate_from = self._rate_from or (now, self.global_step)
        return {
            "update": self.agent.update,
            "global_step": self.global_step,
            "sps": steps / seconds,
            **counters(self.pool),
            "refused_updates": self._refused,
            **self.trainers.metrics(),
        }

    def _save_is_due(self) -> bool:
        before, self._share = self._share, self.agent.update // self.config.updates_per_checkpoint
        by_share = self._share > before  # updates of other trainers may be counted too
        known, self._alarms = self._alarms, self.pool.alarms
        return (
            by_share
            or self._alarms > known
            or time.monotonic() - self._saved_at >= self.config.checkpoint_seconds
        )

    def save(self) -> None:
        """Write a checkpoint of the state after the last update; it is said where that fails."""
        self._saved_at = time.monotonic()  # where it fails, the next one is tried when it is due
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
        rate = None  # of a run that ended with its first update
        if self._rate_from is not None and self._rate_from[1] < self.global_step:
            then, step = self._rate_from
            rate = (self.global_step - step) / max(self._update_end - then, 1e-9)
        seconds = round(self.report.time_s, 3)
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
        shown = "none" if mean_return is None else f"{mean_return:.1f}"
        speed = "" if rate is None else f", {rate:,.0f} steps/s"
        self.report.say(
            f"{self.exit_reason}: {self.global_step:,} steps in {seconds:.1f} s{speed}, mean return of the"
            f" last episodes {shown}; {self.run_dir}"
        )

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        """Save, summarise and close; where one of them fails, the others are done nevertheless.

        Raises:
            UserError: where the run's last state could not be saved, and no other error ends it.
        """
        self.signals.ignore()
        self.trainers.end_watch()
        with contextlib.ExitStack() as last:  # the last one pushed is done first
            assert self._opened is not None
            last.push(self._opened)
            last.callback(self.trainers.end_run)
            last.callback(self.summarize)
            if isinstance(error, UserError):  # `main` prints it
                last.callback(self.report.log, str(error))
            if not isinstance(error, WeightsDiffer):
                last.callback(self.save)  # an update that failed has left no trace
        self.writes.failing.pop(OUTPUT, None)  # it is no part of what is saved
        if self.writes.failing:
            lost = not_saved(self.run_dir, self.writes.failing)
            if error is None:
                raise UserError(lost)
            print(f"train.py: {lost}", file=sys.stderr)
