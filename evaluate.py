"""Score a checkpoint: `python evaluate.py RUN_DIR`. Also the process that evaluates in training."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from config import Config
from errors import UserError
from randomness import stream
from rollout import mean_extras

if TYPE_CHECKING:
    from model import ActorCritic
    from rollout import Weights

ROOT = Path(__file__).resolve().parent
_PARALLEL = 16  # environments that are evaluated at once, one episode each


class Scores(NamedTuple):
    """Raw returns and lengths of evaluation episodes, and what else is known of each."""

    returns: list[float]
    lengths: list[int]
    extras: list[dict[str, float]]

    def mean(self) -> float:
        return float(np.mean(self.returns))

    def std(self) -> float:
        return float(np.std(self.returns))

    def means(self) -> dict[str, float]:
        """The mean of each extra over the episodes that have it."""
        return mean_extras(self.extras)


class EvaluationError(UserError):
    """The evaluation process failed. The message says why."""


class Abandoned(Exception):
    """A newer request makes this evaluation pointless."""


def score(
    model: ActorCritic,
    config: Config,
    episodes: int,
    seed: int,
    greedy: bool = True,
    abandon: Any = None,
    opponents: tuple[str, ...] | None = None,
) -> Scores:
    """Play `episodes` episodes, each from its own seed and for at most test_max_steps steps.

    Every environment plays one episode a round, so that short episodes are not counted more often
    than long ones.

    Args:
        seed: episode i is a function of it and i.
        abandon: called now and then; where it returns True, `Abandoned` is raised.
        opponents: microRTS bots to play against in turn. Default: the run's.
    """
    from envs import make_vec_env

    found = Scores([], [], [])
    distribution = model.distribution
    while len(found.returns) < episodes:
        first = len(found.returns)
        count = min(_PARALLEL, episodes - first)
        generator = stream("evaluation", seed, first)
        venv = make_vec_env(config.env, count, **_options(config, first, count, opponents))
        try:
            seeds = generator.integers(2**31 - 1, size=count)
            obs, _ = venv.reset(seed=seeds.tolist())
            playing = np.ones(count, bool)
            total, length = np.zeros(count), np.zeros(count, np.int64)
            extras: list[dict[str, float]] = [{} for _ in range(count)]
            for step in range(config.test_max_steps):
                if abandon is not None and step % 50 == 0 and abandon():
                    raise Abandoned
                noise = draw_noise(distribution, generator, count, greedy)
                mask = getattr(venv, "action_mask", None)
                action = model.act(as_stored(obs), noise, mask).action.numpy()
                obs, reward, terminated, truncated, _ = venv.step(distribution.to_env(action))
                total += np.where(playing, reward, 0.0)
                length += playing
                over = playing & (terminated | truncated)
                if hasattr(venv, "extras"):
                    for i in np.flatnonzero(over).tolist():
                        extras[i] = venv.extras(i)
                playing &= ~over
                if not playing.any():
                    break
        finally:
            venv.close()
        found.returns.extend(total.tolist())
        found.lengths.extend(length.tolist())
        found.extras.extend(extras)
    return found


def _options(
    config: Config, first: int, count: int, opponents: tuple[str, ...] | None
) -> dict[str, Any]:
    """What the environments of episodes [first, first + count) are made with."""
    if not config.env_options():
        return {}
    bots = opponents or tuple(entry.partition(":")[0] for entry in config.opponents)
    chosen = tuple(bots[i % len(bots)] for i in range(first, first + count))
    return {"game": config.game(chosen, first)}


def as_stored(obs: np.ndarray) -> np.ndarray:
    return obs if obs.dtype == np.uint8 else obs.astype(np.float32)


def draw_noise(distribution: Any, generator: np.random.Generator, count: int, greedy: bool) -> Any:
    if greedy:
        return None
    shape = (count, *distribution.noise_shape)
    if distribution.noise == "normal":
        return generator.standard_normal(shape, np.float32)
    return generator.random(shape, np.float32)


class Evaluation(NamedTuple):
    """A finished evaluation, and the weights and the step that it is of."""

    scores: Scores
    weights: Weights
    step: int


class Evaluator:
    """Evaluates in a process of its own, at low priority, so that training never waits for it.

    Consumes weights by `submit`; where an evaluation is still running, they wait in its place for
    the next, and newer ones replace them. Produces `Evaluation`s, by `poll`.
    """

    def __init__(self, config: Config, weights: Weights):
        from cluster import wire
        from cluster.local import SharedMemory

        self._pack = wire.pack
        self._memory = SharedMemory(len(wire.pack({}, weights.arrays)) + 4096)
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self._memory.descriptor)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", "from evaluate import serve; serve()",
             *map(str, descriptors)],
            pass_fds=descriptors, env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        hello = {"config": config.to_dict(), "memory": self._memory.size}
        self._connection.send_bytes(json.dumps(hello).encode())
        self._running: tuple[Weights, int] | None = None
        self._waiting: tuple[Weights, int] | None = None

    def submit(self, weights: Weights, step: int) -> None:
        """Evaluate these weights as soon as the process is free. Never waits."""
        self._waiting = (weights, step)
        if self._running is None:
            self._start()

    def poll(self) -> Evaluation | None:
        """A finished evaluation, if there is one. Never waits.

        Raises:
            EvaluationError: where it failed.
        """
        if self._running is None or not self._connection.poll(0):
            return None
        return self._finish()

    def last(self, weights: Weights, step: int) -> Evaluation:
        """Evaluate these weights now, dropping what is running, and wait for the result."""
        self._waiting = None
        if self._running is not None:
            self._connection.send_bytes(b'{"abandon": true}')
            self._finish()
        self.submit(weights, step)
        evaluation = self._finish()
        assert evaluation is not None  # nothing asked to abandon this one
        return evaluation

    def _start(self) -> None:
        assert self._waiting is not None
        self._running, self._waiting = self._waiting, None
        weights, step = self._running
        packed = self._pack({}, weights.arrays)
        self._memory.view()[: len(packed)] = packed
        self._connection.send_bytes(json.dumps({"step": step}).encode())

    def _finish(self) -> Evaluation | None:
        assert self._running is not None
        try:
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise EvaluationError("the evaluation process ended") from None
        if "error" in answer:
            raise EvaluationError(f"the evaluation failed: {answer['error']}")
        (weights, step), self._running = self._running, None
        if self._waiting is not None:
            self._start()
        if "abandoned" in answer:
            return None
        return Evaluation(Scores(**answer), weights, step)

    def close(self) -> None:
        self._connection.close()
        self._process.kill()  # it holds nothing worth keeping
        self._process.wait()


def serve() -> None:
    """The evaluation process. Arguments: the descriptors of its pipe and of the weights."""
    from cluster import wire
    from cluster.local import SharedMemory

    os.nice(10)
    connection = Connection(int(sys.argv[1]))

    def answer(**content: Any) -> None:
        connection.send_bytes(json.dumps(content).encode())

    with contextlib.suppress(EOFError, ConnectionError):  # the learner closed the pipe, or ended
        hello = json.loads(connection.recv_bytes())
        try:
            import torch

            torch.set_num_threads(1)
            config = Config(**hello["config"])
            model = build_model(config)
            weights = SharedMemory(hello["memory"], int(sys.argv[2])).view()
            while True:
                request = json.loads(connection.recv_bytes())
                if "abandon" in request:  # it had finished before the word came
                    continue
                model.set_weights(wire.unpack(weights)[1])
                try:
                    scores = score(
                        model, config, config.test_episodes, config.seed,
                        abandon=lambda: connection.poll(0),
                    )  # fmt: skip
                except Abandoned:
                    answer(abandoned=True)
                else:
                    answer(**scores._asdict())
        except (EOFError, ConnectionError):
            raise
        except Exception:
            answer(error=traceback.format_exc())


def build_model(config: Config) -> ActorCritic:
    """The model of a run, for its environment's spaces."""
    from envs import spaces_of
    from model import make_model

    env_spaces = spaces_of(config.env, **config.env_options())
    return make_model(env_spaces, config)


# --- the command line


@dataclass
class Arguments:
    """Score a checkpoint of a run."""

    run_dir: Path
    """The run's folder."""
    checkpoint: Literal["last", "best"] = "last"
    """The newest checkpoint, or the weights of the best evaluation."""
    episodes: int = 10
    """Episodes to play."""
    stochastic: bool = False
    """Sample actions instead of taking the greedy ones."""
    seed: int = 0
    """Seed of the episodes."""
    video: Path | None = None
    """Also write an mp4 of one episode here."""


def main() -> None:
    import tyro

    from agent import model_arrays
    from checkpoint import load, load_newest
    from config import ConfigError
    from settings import load_run

    arguments = tyro.cli(
        Arguments, prog="evaluate.py",
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    try:
        if arguments.episodes < 1:
            raise ConfigError(f"episodes is {arguments.episodes}, but must be at least 1")
        config = load_run(arguments.run_dir)
        if arguments.video is not None:
            from video import choose_renderer, film

            choose_renderer(config.env)
        checkpoints = arguments.run_dir / "checkpoints"
        if arguments.checkpoint == "best":
            saved, complaints = load(checkpoints / "best"), []
        else:
            saved, complaints = load_newest(checkpoints)
        for complaint in complaints:
            print(f"evaluate.py: {complaint}; using the one before it", file=sys.stderr)
        model = build_model(config)
        model.set_weights(model_arrays(saved.arrays))
        scores = score(
            model, config, arguments.episodes, arguments.seed, greedy=not arguments.stochastic
        )
        kind = "stochastic" if arguments.stochastic else "greedy"
        print(
            f"{config.env}, {saved.path.name} ({saved.state['global_step']:,} steps), {kind}: return"
            f" mean {scores.mean():.2f}, std {scores.std():.2f}, episodes {len(scores.returns)},"
            f" mean length {np.mean(scores.lengths):.1f}"
        )
        if arguments.video is not None:
            frames = film(model, config, arguments.video, arguments.seed, not arguments.stochastic)
            print(f"{arguments.video}: {frames} frames")
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
