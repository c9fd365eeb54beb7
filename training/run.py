"""One run: its parts, its counters, its folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch

from agent import PPOAgent
from algorithm import PPO
from cluster.make import make_pool
from common import checkpoint
from envs import Spaces
from evaluation.process import Evaluation, Evaluator
from model import make_model
from rollout import Rollout, Weights
from settings.config import Config
from training.report import WINDOW, Report, write_json

VERSIONED = (
    "torch", "numpy", "gymnasium", "mujoco", "ale-py", "parl", "numba", "grpcio", "pyzmq",
)  # fmt: skip
_BEHAVIOUR = "behaviour/"


class Stopped(Exception):
    """A signal asked the run to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.reason = signal.Signals(number).name.lower()


class StopSignals:
    """SIGTERM and SIGINT: end at once while waiting, otherwise at the next wait.

    Where the next wait is too far away (the first update may compile for 20 s), `abort` is called.

    Args:
        abort: ends the process, given the reason; it must not return.
    """

    GRACE_S = 4.0

    def __init__(self, abort: Callable[[str], NoReturn]) -> None:
        self._asked: int | None = None
        self._waiting = False
        self._abort = abort
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        signal.signal(signal.SIGALRM, self._too_late)

    def _handle(self, number: int, frame: Any) -> None:
        self._asked = number
        if self._waiting:
            raise Stopped(number)
        signal.setitimer(signal.ITIMER_REAL, self.GRACE_S)

    def _too_late(self, number: int, frame: Any) -> None:
        assert self._asked is not None
        self._abort(Stopped(self._asked).reason)

    @contextlib.contextmanager
    def interrupting(self):
        """Wait in here: a signal, also one that came before, raises `Stopped`."""
        self._waiting = True
        try:
            if self._asked is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise Stopped(self._asked)
            yield
        finally:
            self._waiting = False


class Run:
    """Agent, pool, evaluator and report of one run, wired, and what it counts.

    Args:
        config: the settings, checked.
        run_dir: the run's folder, with its config.yaml.
        device: the learner's.
        env_spaces: the environment's.
    """

    def __init__(self, config: Config, run_dir: Path, device: str, env_spaces: Spaces):
        self.config, self.run_dir, self.device = config, run_dir, device
        self.checkpoints = run_dir / "checkpoints"
        torch.set_num_threads(config.torch_threads or os.cpu_count() or 1)
        model = make_model(env_spaces, config).to(device)
        self.agent = PPOAgent(PPO(model, config), config)
        self.global_step = 0
        self.best: float | None = None  # mean return of the best evaluation
        self.last_evaluation: float | None = None
        self.behaviour = self.agent.weights()  # what the samplers were last given
        report_state = self._restore() if config.resume is not None else None
        self.first_update = self.agent.update
        every = config.steps_per_evaluation
        self._next_evaluation = (self.global_step // every + 1) * every
        self.signals = StopSignals(self._abort)
        with contextlib.ExitStack() as opened:
            self.report = Report(run_dir, config, self.global_step, report_state)
            opened.callback(self.report.close)
            self.pool = make_pool(config, model, self.behaviour)
            opened.callback(self.pool.close)
            self.evaluator = Evaluator(config, self.behaviour, self.report.say)
            opened.callback(self.evaluator.close)
            self._opened = opened.pop_all()
        self._update_end = time.perf_counter()
        self._first_update: tuple[float, int] | None = None  # when it ended, and its step

    def _abort(self, reason: str) -> NoReturn:
        """End now, from within an update, in the state from before it."""
        self.save()
        self.summarize(reason)
        self.close()
        _end_children()
        sys.stdout.flush()
        os._exit(0)

    def close(self) -> None:
        """Leave no process and no open file behind."""
        self._opened.close()

    def progress(self, rollout: Rollout | None = None) -> float:
        """Share of the run that is over, in [0, 1], or that will be once `rollout` is counted."""
        step = self.global_step + (rollout.steps if rollout is not None else 0)
        return min(1.0, step / self.config.train_total_steps)

    def resets_before(self, update: int) -> bool:
        """Whether all environments are reset before the fragment of this update.

        They are after every checkpoint, which cannot hold their state, so that a resumed run and
        one that was never interrupted do the same. Asynchronous samplers (policy_lag >= 2), which
        no two runs repeat, are spared that.
        """
        return update == self.first_update or (
            self.saves_before(update) and self.config.policy_lag <= 1
        )

    def saves_before(self, update: int) -> bool:
        """Whether a checkpoint is written between the update before this one and this one."""
        return update % self.config.updates_per_checkpoint == 0

    def needs_warm_up(self) -> bool:
        """Whether a fragment is to be collected for the normaliser alone: before the first step."""
        normalizes = self.config.normalize_observation or self.config.rnd_coefficient > 0
        return normalizes and self.global_step == 0

    def warm_up(self, rollout: Rollout) -> None:
        """Initialise the normaliser from a fragment that is not learned from.

        Otherwise the first updates, on raw observations, drive tanh units into saturation, and the
        sudden normalisation after them finds the policy already spoilt.
        """
        self.agent.initialize_normalizer(rollout)
        self.behaviour = self.agent.weights()
        self._count(rollout)

    def _count(self, rollout: Rollout) -> None:
        self.global_step += rollout.steps
        self.report.add_episodes(rollout.episodes)

    def record(
        self, rollout: Rollout, metrics: dict[str, float], times: dict[str, float]
    ) -> str | None:
        """Count an update, have its weights evaluated where that is due, and report.

        Returns:
            why the run is over: finished, solved or max_minutes; None where it is not.
        """
        self._count(rollout)
        now = time.perf_counter()
        line: dict[str, Any] = {
            "update": self.agent.update,
            "global_step": self.global_step,
            "sps": rollout.steps / (now - self._update_end),
            "dropped_fragments": self.pool.dropped,
            "samplers_alive": self.pool.samplers,
            "restarts": 0,
            **metrics,
            **{f"time/{name}": seconds for name, seconds in times.items()},
        }
        self._update_end = now
        self._first_update = self._first_update or (now, self.global_step)
        over = self._over()
        if over is None:
            if self.global_step >= self._next_evaluation:
                self._next_evaluation += self.config.steps_per_evaluation
                self.evaluator.submit(self.agent.weights(), self.global_step)
            evaluation = self.evaluator.poll()
            if evaluation is not None:
                line |= self._note(evaluation)
                over = "solved" if self._solves(evaluation.scores.mean()) else None
        if over is not None:  # the weights that are saved at the end are the ones evaluated last
            with self.signals.interrupting():
                for evaluation in self.evaluator.last(self.agent.weights(), self.global_step):
                    line |= self._note(evaluation)
        self.report.write(line)
        return over

    def _over(self) -> str | None:
        if self.progress() >= 1.0:
            return "finished"
        mean_return, _ = self.report.means()
        if len(self.report.returns) == WINDOW and self._solves(mean_return):
            return "solved"
        limit = self.config.max_minutes
        return "max_minutes" if limit is not None and self.report.time_s >= 60 * limit else None

    def _solves(self, score: float | None) -> bool:
        wanted = self.config.solve_score
        return wanted is not None and score is not None and score >= wanted

    def _note(self, evaluation: Evaluation) -> dict[str, Any]:
        scores, mean = evaluation.scores, evaluation.scores.mean()
        self.last_evaluation = mean
        self.report.say(
            f"evaluation at {evaluation.step:,} steps: return mean {mean:.2f}, std"
            f" {scores.std():.2f}, episodes {len(scores.returns)}"
        )
        if self.best is None or mean > self.best:
            self.best = mean
            arrays = {f"{checkpoint.MODEL}{n}": a for n, a in evaluation.weights.arrays.items()}
            state = {"global_step": evaluation.step, "return_mean": mean}
            checkpoint.write(self.checkpoints / "best", arrays, state)
        return {
            "eval/return_mean": mean,
            "eval/return_std": scores.std(),
            "eval/episodes": len(scores.returns),
            **{f"eval/{name}": value for name, value in scores.means().items()},
            "eval/global_step": evaluation.step,
        }

    def save(self) -> None:
        """Write a checkpoint of the state after the last update."""
        arrays, state = self.agent.state()
        # with lag 1 the fragment after this update is collected under the weights from before it
        arrays |= {f"{_BEHAVIOUR}{n}": a for n, a in self.behaviour.arrays.items()}
        state |= {
            "behaviour_version": self.behaviour.version,
            "global_step": self.global_step,
            "best": self.best,
            "last_evaluation": self.last_evaluation,
            "report": self.report.state(),
        }
        checkpoint.save(self.checkpoints, self.agent.update, arrays, state)

    def _restore(self) -> dict[str, Any]:
        saved, complaints = checkpoint.load_newest(self.checkpoints)
        for complaint in complaints:
            print(f"train.py: {complaint}; using the one before it", file=sys.stderr)
        self.agent.load_state(saved.arrays, saved.state)
        behaviour = checkpoint.part(saved.arrays, _BEHAVIOUR)
        self.behaviour = Weights(saved.state["behaviour_version"], behaviour)
        self.global_step, self.best = saved.state["global_step"], saved.state["best"]
        self.last_evaluation = saved.state["last_evaluation"]
        return saved.state["report"]

    def summarize(self, reason: str) -> None:
        """Write summary.json and say how the run ended."""
        mean_return, _ = self.report.means()
        rate = 0.0
        if self._first_update is not None:
            then, step = self._first_update
            rate = (self.global_step - step) / max(self._update_end - then, 1e-9)
        weights = checkpoint.part(self.agent.state()[0], checkpoint.MODEL)
        parameters = sorted(name for name, _ in self.agent.model.named_parameters())
        digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in parameters))
        seconds = round(self.report.time_s, 3)
        write_json(
            self.run_dir / "summary.json",
            {
                "global_step": self.global_step,
                "time_s": seconds,
                "sps": rate,
                "train_return_last100": mean_return,
                "eval_return_mean": self.last_evaluation,
                "eval_return_best": self.best,
                "weights_sha256": digest.hexdigest(),
                "exit_reason": reason,
                "samplers": self.pool.samplers,
                "pool": self.pool.name,
                "device": self.device,
                "versions": versions(),
            },
        )
        shown = "none" if mean_return is None else f"{mean_return:.1f}"
        self.report.say(
            f"{reason}: {self.global_step:,} steps in {seconds:.1f} s, {rate:,.0f} steps/s, mean"
            f" return of the last episodes {shown}; {self.run_dir}"
        )


def _end_children() -> None:
    """Kill what compiles, also what another thread starts meanwhile."""
    deadline = time.monotonic() + 3
    while children := psutil.Process().children(recursive=True):
        for process in reversed(
            children
        ):  # leaves first: what is left over is reaped by its parent
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children, timeout=0.5)
        if time.monotonic() > deadline:
            return


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's result depends on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
