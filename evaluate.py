"""Score a checkpoint: `python evaluate.py RUN_DIR`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from common.errors import UserError
from common.terminal import allow_short_help

if TYPE_CHECKING:
    from evaluation.load import Policy

# Modules that are slow to import are imported in functions, so that --help answers at once.


@dataclass
class Arguments:
    """Play episodes with a run's policy and print its scores."""

    run_dir: Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]
    """The run's folder."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="{last,best}")] = "last"
    """The newest weights, or those of the best evaluation."""
    episodes: int = 10
    """Number of episodes; with --opponents, number of games against each."""
    stochastic: bool = False
    """Sample actions from the policy instead of taking the most probable ones."""
    seed: int = 0
    """Seed of the episodes."""
    video: Annotated[Path | None, tyro.conf.arg(metavar="FILE.mp4")] = None
    """Also film one episode into this .mp4 file."""
    trust: bool = False
    """Import the module of a class, `module:Class`, that the settings of somebody else's run name, from
    the folder worked in or from PYTHONPATH."""
    opponents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BOT...")] = ()
    """microRTS bots for a league table, which is also drawn in RUN_DIR/league.png; `all` stands for
    every bot. Default: play against the run's own opponents in turn, without a table."""


def print_scores(policy: Policy, arguments: Arguments, title: str) -> None:
    """Score the policy and print what came of it."""
    import numpy as np

    from evaluation.score import score

    scores = score(
        policy.model, policy.config, arguments.episodes, arguments.seed, not arguments.stochastic
    )
    print(
        f"{title}: return mean {scores.mean():.2f}, std {scores.std():.2f}, episodes"
        f" {len(scores.returns)}, mean length {np.mean(scores.lengths):.1f}"
    )
    for name, value in scores.means().items():
        print(f"  {name} {value:.3f}")


def play_league(
    policy: Policy, opponents: tuple[str, ...], arguments: Arguments, title: str
) -> None:
    """Play against each opponent, print the table and draw the picture."""
    from evaluation import league

    standings = []
    for opponent in opponents:
        print(f"playing {opponent}", file=sys.stderr, flush=True)
        standings.append(
            league.play(
                policy.model, policy.config, opponent, arguments.episodes, arguments.seed,
                not arguments.stochastic,
            )
        )  # fmt: skip
    print(title)
    print(league.table(standings))
    path = arguments.run_dir / "league.png"
    league.draw(standings, path, title)
    print(path)


def evaluate(arguments: Arguments) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: for a wrong argument, with the remedy.
    """
    from evaluation.league import opponents_of
    from evaluation.load import load_policy
    from settings.config import ConfigError

    if arguments.episodes < 1:
        raise ConfigError(f"episodes is {arguments.episodes}, but must be at least 1")
    filmed = arguments.video is not None
    policy = load_policy(arguments.run_dir, arguments.checkpoint, filmed, arguments.trust)
    for complaint in policy.complaints:
        print(f"evaluate.py: {complaint}; using the one before it", file=sys.stderr)
    opponents = opponents_of(arguments.opponents, policy.config)
    actions = "stochastic" if arguments.stochastic else "greedy"
    title = f"{policy.config.env}, {policy.checkpoint} ({policy.step:,} steps), {actions}"
    if arguments.video is not None:
        from evaluation.film import film

        count = film(
            policy.model, policy.config, arguments.video, arguments.seed, not arguments.stochastic
        )
        print(f"{arguments.video}: {count} frames")
    if opponents:
        play_league(policy, opponents, arguments, title)
    else:
        print_scores(policy, arguments, title)


def main() -> None:
    allow_short_help(sys.argv)
    arguments = tyro.cli(
        Arguments, prog="evaluate.py",
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    try:
        evaluate(arguments)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
