"""Score, film, export or follow a run's policy: `python evaluate.py RUN_DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from common.terminal import (
    allow_short_help,
    end_without,
    exit_when_asked,
    nobody_reads,
    print_anything,
)

try:
    import tyro
except ModuleNotFoundError as error:
    end_without(error.name, "evaluate.py")

from common.errors import UserError

if TYPE_CHECKING:
    from evaluation.follow import Line, Source
    from evaluation.load import Policy
    from evaluation.score import Scores
    from model import ActorCritic
    from settings.config import Config

# Modules that are slow to import are imported in functions, so that --help answers at once.


@dataclass
class Arguments:
    """Play episodes with a run's policy and print its scores."""

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")] = None
    """The run's folder."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="{last,best}")] = "last"
    """The newest weights, or those of the best evaluation."""
    episodes: int = 10
    """Number of episodes; with --opponents, number of games against each. 0, with --video or --export:
    none."""
    stochastic: bool = False
    """Sample actions from the policy instead of taking the greedy ones."""
    seed: int = 0
    """Seed of the episodes."""
    video: Annotated[Path | None, tyro.conf.arg(metavar="FILE.mp4")] = None
    """Also film one episode into this .mp4 file."""
    export: Annotated[Path | None, tyro.conf.arg(metavar="FILE.onnx|FILE.pt2|FOLDER")] = None
    """Also write the policy. A file is for other programs, and acts greedily: an ONNX model (after `make
    export`) or a program of torch.export. A new folder is for this one: what evaluate.py needs of the
    run, without the rest."""
    follow: bool = False
    """Score the newest checkpoint, and each newer one as it appears, until the run has ended. The scores
    are lines of RUN_DIR/followed.jsonl too, for `plot.py --metric followed/return_mean`."""
    store: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """With --follow, instead of RUN_DIR: the sample store of a run, redis://HOST:PORT/DB. The scores
    come to the run's followed.jsonl."""
    run: Annotated[str | None, tyro.conf.arg(metavar="RUN_ID")] = None
    """The id of the run in the store. Default: its only one."""
    trust: bool = False
    """Import the module of a class, `module:Class`, that the settings of somebody else's run name, from
    the folder worked in or from PYTHONPATH."""
    opponents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BOT...")] = ()
    """microRTS bots for a league table, which is also drawn in RUN_DIR/league.png; `all` stands for
    every bot. Default: play against the run's own opponents in turn, without a table."""


def print_scores(policy: Policy, arguments: Arguments, title: str) -> None:
    """Score the policy and print what came of it."""
    from evaluation.score import score

    scores = score(
        policy.model, policy.config, arguments.episodes, arguments.seed, not arguments.stochastic
    )
    print(f"{title}: {in_words(scores)}")
    for name, value in scores.means().items():
        print(f"  {name} {value:.3f}")


def in_words(scores: Scores) -> str:
    """Scores in one line, but for the numbers that the environment adds."""
    import numpy as np

    return (
        f"return mean {scores.mean():.2f}, std {scores.std():.2f}, episodes {len(scores.returns)},"
        f" mean length {np.mean(scores.lengths):.1f}"
    )


def follow_run(run_dir: Path, arguments: Arguments) -> None:
    """Print the scores of each new checkpoint of a run's folder, until the run has ended."""
    from evaluation.follow import Checkpoints, record
    from evaluation.load import settings_of
    from model import build_model

    config = settings_of(run_dir, arguments.trust)
    model = build_model(config)
    model.prepare_to_act()
    source = Checkpoints(run_dir, model, complain)
    print_versions(source, model, config, arguments, partial(record, run_dir))


def follow_store(url: str, arguments: Arguments) -> None:
    """Print the scores of each new version in a sample store, until the run has ended."""
    from cluster.store.make import joined, run_of
    from evaluation.stored import Stored
    from model import build_model

    with closing(run_of(url, arguments.run, complain)) as store:
        _, config = joined(store, arguments.trust, "--run")
        model = build_model(config)
        model.prepare_to_act()
        source = Stored(store, model, complain)
        print_versions(source, model, config, arguments, source.record)


def print_versions(
    source: Source, model: ActorCritic, config: Config, arguments: Arguments,
    record: Callable[[Line], None],
) -> None:  # fmt: skip
    """Print the scores of each version of a policy as it appears, until there will be no newer one.

    Args:
        record: takes the scores, as a line of followed.jsonl.
    """
    from common.files import CannotWrite
    from evaluation.follow import follow, line_of

    greedy = not arguments.stochastic
    for evaluation in follow(source, model, config, arguments.episodes, arguments.seed, greedy):
        scores = evaluation.scores
        extras = "".join(f", {name} {value:.3f}" for name, value in scores.means().items())
        print(f"{evaluation.step:,} steps: {in_words(scores)}{extras}", flush=True)
        try:
            record(line_of(evaluation, arguments.seed, greedy))
        except CannotWrite as error:
            complain(str(error))


def complain(text: str) -> None:
    print(f"evaluate.py: {text}", file=sys.stderr, flush=True)


def play_league(
    policy: Policy, opponents: tuple[str, ...], run_dir: Path, arguments: Arguments, title: str
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
    path = run_dir / "league.png"
    league.draw(standings, path, title)
    print(path)


def refuse_contradictions(arguments: Arguments) -> None:
    """Refuse arguments that do not go together.

    Raises:
        ConfigError: for the first of them.
    """
    from settings.config import ConfigError

    least = 0 if arguments.video or arguments.export else 1
    if arguments.episodes < least:
        raise ConfigError(f"episodes is {arguments.episodes}, but must be at least {least}")
    if arguments.episodes == 0 and arguments.opponents:
        raise ConfigError(
            f"episodes is 0, but {' '.join(arguments.opponents)} are to be played against: give"
            f" --episodes, or leave --opponents out"
        )
    if arguments.seed < 0:
        raise ConfigError(f"seed is {arguments.seed}, but must be at least 0")
    if arguments.store is not None and not arguments.follow:
        raise ConfigError("store names a run that trains, which --follow scores: give that too")
    if arguments.run is not None and arguments.store is None:
        raise ConfigError(f"run {arguments.run} is one of a store: give its URL as --store")
    if (arguments.store is None) == (arguments.run_dir is None):
        raise ConfigError(
            "a run is named by its folder, or by --store and --follow: give one of both"
        )
    for name in ("checkpoint", "video", "export", "opponents"):
        value = getattr(arguments, name)
        if arguments.follow and value != getattr(Arguments, name):
            raise ConfigError(
                f"{name} is {value}, but --follow scores each newest version, and does nothing else:"
                f" leave one of the two out"
            )


def evaluate(arguments: Arguments) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: for a wrong argument, with the remedy.
    """
    from evaluation.league import opponents_of
    from evaluation.load import load_policy

    refuse_contradictions(arguments)
    run_dir = arguments.run_dir
    if arguments.store is not None:
        follow_store(arguments.store, arguments)
        return
    assert run_dir is not None
    if arguments.follow:
        follow_run(run_dir, arguments)
        return
    filmed = arguments.video is not None
    policy = load_policy(run_dir, arguments.checkpoint, filmed, arguments.trust)
    policy.model.prepare_to_act()
    for complaint in policy.complaints:
        complain(f"{complaint}; using the one before it")
    opponents = opponents_of(arguments.opponents, policy.config)
    saved = policy.saved
    actions = "stochastic" if arguments.stochastic else "greedy"
    title = f"{policy.config.env}, {saved.path.name} ({saved.step:,} steps), {actions}"
    if arguments.export is not None:
        from evaluation.export import export
        from evaluation.policy_folder import export_folder

        if arguments.export.suffix:
            export(policy.model, policy.config, arguments.export)
        else:
            export_folder(run_dir, saved, arguments.export)
        print(arguments.export)
    if arguments.video is not None:
        from evaluation.film import film

        count = film(
            policy.model, policy.config, arguments.video, arguments.seed, not arguments.stochastic
        )
        print(f"{arguments.video}: {count} frames")
    if arguments.episodes == 0:
        return
    if opponents:
        play_league(policy, opponents, run_dir, arguments, title)
    else:
        print_scores(policy, arguments, title)


def main() -> None:
    allow_short_help(sys.argv)
    print_anything()
    exit_when_asked()  # half a film or export is removed then
    arguments = tyro.cli(
        Arguments, prog="evaluate.py",
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    try:
        evaluate(arguments)
        sys.stdout.flush()
    except UserError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        if not nobody_reads():  # as `head` soon does not
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor what Python prints at its end
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
