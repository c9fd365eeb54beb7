"""A microRTS policy against each bot: how many games it wins, draws and loses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError
from envs import family_of
from envs.microrts.game import OPPONENTS, WrongOpponents
from evaluation.score import score
from settings.config import Config

if TYPE_CHECKING:
    from model import ActorCritic


class BadPicture(UserError):
    """A picture that cannot be written. The message names it."""


class Standing(NamedTuple):
    """The shares of the games against one bot, which sum to 1, and their mean length in steps."""

    opponent: str
    games: int
    win: float
    draw: float
    loss: float
    length: float


def opponents_of(names: tuple[str, ...], config: Config) -> tuple[str, ...]:
    """The bots that `--opponents` names; `all` stands for every bot.

    Raises:
        WrongOpponents: for a name that no bot has, and where the run is not of microRTS.
    """
    if names and family_of(config.env) != "microrts":
        raise WrongOpponents(
            f"opponents {' '.join(names)} play microRTS, but the run is of env {config.env}: leave"
            f" --opponents out"
        )
    if names == ("all",):
        return tuple(OPPONENTS)
    for name in names:
        if name not in OPPONENTS:
            raise WrongOpponents(
                f"opponents has {name!r}: give all, or some of {', '.join(OPPONENTS)}"
            )
    return names


def play(
    model: ActorCritic, config: Config, opponent: str, games: int, seed: int, greedy: bool
) -> Standing:
    """Play `games` games against one bot, on the sides that the run's settings say.

    A game that is cut off, by the run's max_steps or by test_max_steps, is a draw.
    """
    scores = score(model, config, games, seed, greedy, opponents=(opponent,))
    means = scores.means()
    win, draw, loss = (means[f"{outcome}/{opponent}"] for outcome in ("win", "draw", "loss"))
    played = len(scores.lengths)
    return Standing(opponent, played, win, draw, loss, length=sum(scores.lengths) / played)


def table(standings: list[Standing]) -> str:
    """The league as text, the mean over bots last."""
    rows = [f"{'opponent':<16} {'games':>5} {'win':>6} {'draw':>6} {'loss':>6} {'length':>7}"]
    rows += [
        f"{s.opponent:<16} {s.games:>5} {s.win:>6.2f} {s.draw:>6.2f} {s.loss:>6.2f} {s.length:>7.0f}"
        for s in standings
    ]
    count = len(standings)
    win, draw, loss = (
        sum(getattr(s, outcome) for s in standings) / count for outcome in ("win", "draw", "loss")
    )
    games = sum(s.games for s in standings)
    rows.append(f"{'mean':<16} {games:>5} {win:>6.2f} {draw:>6.2f} {loss:>6.2f}")
    return "\n".join(rows)


def draw(standings: list[Standing], path: Path, title: str) -> None:
    """Draw the league as stacked bars, one for each bot, into the PNG `path`.

    Raises:
        BadPicture: where the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [s.opponent for s in standings][::-1]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.32 * len(names)), layout="constrained")
    left = [0.0] * len(names)
    for outcome, colour in (("win", "#4c9a5b"), ("draw", "#c9c9c2"), ("loss", "#c8553d")):
        values = [100 * getattr(s, outcome) for s in standings][::-1]
        bars = axes.barh(names, values, left=left, color=colour, label=outcome)
        axes.bar_label(bars, [f"{v:.0f}" if v >= 6 else "" for v in values], label_type="center")
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of games [%]")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=3, loc="outside upper right", frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise BadPicture(f"picture {path} cannot be written: {error.strerror}") from None
    finally:
        plt.close(figure)
