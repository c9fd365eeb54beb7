"""Policies that ship: `python benchmarks/pretrained.py benchmarks/results/returns.json`.

Of each environment in the results of `returns.py` the seed whose final weights scored best is taken. Its
policy is written into `<out>/<environment>`, with a card: how it was trained, what it scores in 100 new
episodes, and a picture of it. `<out>/README.md` lists all policies that have a card.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from runs import EPISODES, command, named

from common.statistics import mean_estimate
from plot import number
from settings.config import ConfigError

CARD_EPISODES = 100
CARD_SEED = 2_000_000  # the results' own episodes have others
FRAME = 60  # steps into an episode, in which it has begun to move
TITLE = "# Policies that were trained here"
HEAD = "| environment | score | 95% interval | steps |"
ABOUT = f"""{TITLE}

`python evaluate.py pretrained/NAME` plays one, and `--video FILE.mp4` films it. Each folder holds the
settings and the weights, no state of the training, and a card with the command. The score is the mean
return of {CARD_EPISODES} greedy episodes. Licence: Apache-2.0, as the project.

{HEAD}
|---|---|---|---|
"""


@dataclass
class Arguments:
    """Export the best seed of each environment, score it anew, and write its card."""

    results: tuple[Path, ...]
    """JSON files that returns.py wrote, beside the folders of their runs."""
    out: Path = Path("pretrained")
    """The folder for the policies."""
    beside: str = ""
    """What else ran on the machine, so that the time says little: for the card."""


def best_rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each environment the row of the seed whose final weights scored best."""
    rows: dict[str, dict[str, Any]] = {}
    for row in sorted(found["runs"], key=lambda row: row["final"]):
        rows[row["env"]] = row
    return rows


def card(found: dict[str, Any], row: dict[str, Any], scores: np.ndarray, beside: str) -> str:
    """The page of a policy.

    Args:
        found: what returns.py wrote.
        row: the run's, of its `runs`.
        scores: returns of new episodes.
        beside: what else ran on the machine.
    """
    mean, low, high = (number(float(part)) for part in mean_estimate(scores))
    seeds = sum(other["env"] == row["env"] for other in found["runs"])
    flags = "".join(f" {flag}" for flag in found["flags"])
    command = (
        f"python train.py --env {row['env']} --seed {row['seed']}{flags}"
        f" --train_total_steps {found['steps']}"
    )
    origin = row.get("origin", found)  # older results have one for all runs
    others = f", beside {beside}" if beside else ""
    choice = f"the best of {seeds} seeds, by {EPISODES} other episodes" if seeds > 1 else "one seed"
    lines = [
        f"# {row['env']}", "", "![A moment of an episode](frame.jpg)", "", "| | |", "|---|---|",
        f"| score | mean return {mean} in {len(scores)} greedy episodes, 95% interval {low} to {high} |",
        f"| worst and best of these | {number(scores.min())} and {number(scores.max())} |",
        f"| chosen | {choice} |",
        f"| command | `{command}` |",
        f"| steps | {row['global_step']:,} |",
        f"| time | {row['time_s']:,.0f} s{others} |",
        f"| machine | {origin['machine']} ({row['device']}), {origin['date']} |",
        f"| commit | {origin['commit']}, sources {row['project']['sources']} |",
        "| licence | Apache-2.0 |",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def line(page: str) -> str:
    """The line of a policy in the list of all, by its card."""
    env = page.splitlines()[0].removeprefix("# ")
    score, low, high = re.findall(r"mean return (\S+) in .* interval (\S+) to (\S+) \|", page)[0]
    (steps,) = re.findall(r"\| steps \| (\S+) \|", page)
    return f"| [{env}]({env}/README.md) | {score} | {low} to {high} | {steps} |"


def read(path: Path) -> dict[str, Any]:
    """What returns.py wrote.

    Raises:
        ConfigError: where it is something else, or not there.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): give the .json file of returns.py"
        ) from None
    if not isinstance(found, dict) or "runs" not in found:
        raise ConfigError(
            f"{path} has no runs: give the .json file that benchmarks/returns.py wrote"
        )
    return found


def ship(found: dict[str, Any], row: dict[str, Any], run_dir: Path, arguments: Arguments) -> None:
    """Write one policy's folder.

    Raises:
        UserError: where the run cannot be read, or the folder holds something already.
    """
    import imageio.v2 as imageio

    from evaluation.film import frames
    from evaluation.load import load_policy
    from evaluation.policy_folder import export_folder
    from evaluation.score import score

    policy = load_policy(run_dir, filmed=True, trust=True)
    folder = arguments.out / row["env"].replace("/", "-")
    export_folder(run_dir, policy.saved, folder)
    shown = itertools.islice(frames(policy.model, policy.config, CARD_SEED, True), FRAME + 1)
    imageio.imwrite(folder / "frame.jpg", list(shown)[-1])
    scores = score(policy.model, policy.config, CARD_EPISODES, CARD_SEED)
    (folder / "README.md").write_text(card(found, row, np.array(scores.returns), arguments.beside))
    print(f"{folder}: {scores.mean():.1f}", flush=True)


def main() -> None:
    import tyro

    arguments = tyro.cli(Arguments, config=(tyro.conf.PositionalRequiredArgs,))
    with command("pretrained.py"):
        try:
            for path in arguments.results:
                found = read(path)
                for env, row in best_rows(found).items():
                    ship(found, row, path.with_suffix("") / named(env, row["seed"]), arguments)
        finally:  # also of what was shipped before an error
            cards = sorted(arguments.out.glob("*/README.md"))
            listed = "".join(f"{line(path.read_text())}\n" for path in cards)
            if cards:
                (arguments.out / "README.md").write_text(ABOUT + listed)


if __name__ == "__main__":
    main()
