"""Score a checkpoint: `python evaluate.py RUN_DIR`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from common.errors import UserError
from common.randomness import stream
from rollout import mean_extras
from settings.config import Config

if TYPE_CHECKING:
    from model import ActorCritic

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
            playing, state = np.ones(count, bool), model.initial_state(count)
            total, length = np.zeros(count), np.zeros(count, np.int64)
            extras: list[dict[str, float]] = [{} for _ in range(count)]
            for step in range(config.test_max_steps):
                if abandon is not None and step % 50 == 0 and abandon():
                    raise Abandoned
                noise = draw_noise(distribution, generator, count, greedy)
                mask = venv.action_mask if model.spaces.masks else None
                acted = model.act(as_stored(obs), noise, mask, state)
                state = state if acted.state is None else acted.state
                action = distribution.to_env(acted.action)
                obs, reward, terminated, truncated, _ = venv.step(action)
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
    options = config.env_options()
    if "game" in options:
        bots = opponents or tuple(entry.partition(":")[0] for entry in config.opponents)
        chosen = tuple(bots[i % len(bots)] for i in range(first, first + count))
        options["game"] = config.game(chosen, first)
    return options


def as_stored(obs: np.ndarray) -> np.ndarray:
    return obs if obs.dtype == np.uint8 else obs.astype(np.float32)


def draw_noise(distribution: Any, generator: np.random.Generator, count: int, greedy: bool) -> Any:
    if greedy:
        return None
    shape = (count, *distribution.noise_shape)
    if distribution.noise == "normal":
        return generator.standard_normal(shape, np.float32)
    return generator.random(shape, np.float32)


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
    opponents: tuple[str, ...] = ()
    """microRTS bots to play `episodes` games against each, or all: a league table, and its picture
    RUN_DIR/league.png. Default: the run's own, in turn."""


def _play_league(arguments: Arguments, model: ActorCritic, config: Config, what: str) -> None:
    from evaluation import league
    from settings.config import ConfigError

    if "game" not in config.env_options():
        raise ConfigError(f"opponents are for microRTS, not for env {config.env}: leave them out")
    standings = []
    for opponent in league.opponents_of(arguments.opponents):
        print(f"playing {opponent}", file=sys.stderr, flush=True)
        standings.append(
            league.play(
                model, config, opponent, arguments.episodes, arguments.seed,
                not arguments.stochastic,
            )
        )  # fmt: skip
    print(what)
    print(league.table(standings))
    path = arguments.run_dir / "league.png"
    league.draw(standings, path, what)
    print(path)


def main() -> None:
    import tyro

    from agent import model_arrays
    from common.checkpoint import load, load_newest
    from model import build_model
    from settings.config import ConfigError
    from settings.sources import load_run

    arguments = tyro.cli(
        Arguments, prog="evaluate.py",
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    try:
        if arguments.episodes < 1:
            raise ConfigError(f"episodes is {arguments.episodes}, but must be at least 1")
        config = load_run(arguments.run_dir)
        if arguments.video is not None:
            from evaluation.film import choose_renderer, film

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
        kind = "stochastic" if arguments.stochastic else "greedy"
        what = f"{config.env}, {saved.path.name} ({saved.state['global_step']:,} steps), {kind}"
        if arguments.opponents:
            _play_league(arguments, model, config, what)
        else:
            scores = score(
                model, config, arguments.episodes, arguments.seed, not arguments.stochastic
            )
            print(
                f"{what}: return mean {scores.mean():.2f}, std {scores.std():.2f}, episodes"
                f" {len(scores.returns)}, mean length {np.mean(scores.lengths):.1f}"
            )
            for name, value in scores.means().items():
                print(f"  {name} {value:.3f}")
        if arguments.video is not None:
            frames = film(model, config, arguments.video, arguments.seed, not arguments.stochastic)
            print(f"{arguments.video}: {frames} frames")
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
