"""What training reaches, by one protocol: `python benchmarks/returns.py --envs Hopper-v4 --seeds 1 2 3`.

Each environment is trained with each seed by `train.py`, with the flags that follow `--`. Then the final
and the best checkpoint play 20 greedy episodes each, none of which the run has seen. Of the seeds the
interquartile mean is given with a 95% bootstrap interval, the mean and every seed, for each of these and
for the last 100 training episodes. Writes `<out>.md`, `<out>.json` and `<out>_<family>.png` for each
family of environments; the runs are in the folder `<out>`. The same command goes on where it was
interrupted: a run that has ended is not run again.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from runs import (
    MEASURES,
    Run,
    as_numbers,
    begin,
    command,
    complete,
    interval,
    named,
    origins,
    refuse,
    refuse_counts,
    typed,
)

from common.statistics import estimate, iqm_estimate
from envs import family_of
from evaluation.curves import RETURN, curves_of
from evaluation.published import FIGURES, PUBLISHED
from plot import draw, number
from settings.experiments import group
from settings.sources import parse


@dataclass
class Arguments:
    """Train environments with several seeds and report the returns. Flags of train.py follow `--`."""

    envs: tuple[str, ...]
    """The environments."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """The seeds."""
    steps: int = 1_000_000
    """Environment steps of each run."""
    at_once: int = 1
    """Runs at the same time; they share out the cores."""
    out: Path = Path("benchmarks/results/returns")
    """Where to write, without the ending."""


def begin_returns(arguments: Arguments, flags: Sequence[str]) -> None:
    """Check the arguments, and note in the runs' folder with what they are trained.

    Raises:
        UserError: where there is nothing to run, for what train.py would refuse, or where the folder's
            runs were trained with something else.
    """
    refuse_counts(arguments, "seeds", "envs", "at_once")
    refuse(flags, {"seed": "--seeds", "env": "--envs", "train_total_steps": "--steps"})
    for env in arguments.envs:
        parse(["--env", env, *flags, "--train_total_steps", str(arguments.steps)])
    begin(arguments.out, {"steps": arguments.steps, "flags": list(flags)})


def summarise(rows: Sequence[dict[str, Any]], figures: Mapping[str, float]) -> dict[str, Any]:
    """For each environment and measure: interquartile mean, interval, mean, every seed; and for each
    family the interquartile mean of the shares of the published figures, over all its runs.

    Args:
        figures: what was published, by environment. A return below 0 has no share.
    """
    values: dict[str, dict[str, np.ndarray]] = {}
    families: dict[str, list[str]] = defaultdict(list)
    for env in dict.fromkeys(row["env"] for row in rows):
        mine = [row for row in rows if row["env"] == env]
        values[env] = {name: np.array([row[name] for row in mine], float) for name in MEASURES}
        if figures.get(env, 0) > 0:
            families[family_of(env)].append(env)
    environments = {
        env: {
            name: as_numbers(estimate(found, "iqm"))
            | {"mean": float(found.mean()), "seeds": found.tolist()}
            for name, found in measures.items()
        }
        for env, measures in values.items()
    }
    shares = {
        name: {
            measure: as_numbers(iqm_estimate([values[env][measure] / figures[env] for env in envs]))
            for measure in MEASURES
        }
        for name, envs in families.items()
        if len(envs) > 1
    }
    return {"environments": environments, "shares_of_published": shares}


def markdown(found: dict[str, Any], figures: Mapping[str, float], title: str) -> str:
    lines = [
        "# Returns", "", title, "",
        f"| environment | measure | IQM | 95% interval | mean | every seed | {PUBLISHED} |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for env, measures in found["environments"].items():
        published = number(figures[env]) if env in figures else "-"
        for name, value in measures.items():
            seeds = ", ".join(map(number, value["seeds"]))
            lines.append(
                f"| {env} | {MEASURES[name]} | {number(value['iqm'])} | {interval(value)}"
                f" | {number(value['mean'])} | {seeds} | {published} |"
            )
    for family, measures in found["shares_of_published"].items():
        for name, value in measures.items():
            lines.append(
                f"| all of {family}, as shares of the published figures | {MEASURES[name]}"
                f" | {number(value['iqm'])} | {interval(value)} | - | - | 1 |"
            )
    return "\n".join(lines) + "\n"


def draw_families(runs: Sequence[Run], figures: Mapping[str, float], out: Path) -> None:
    """The learning curves of each family of environments, beside the published figures."""
    families: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        families[family_of(run.env)].append(run)
    for name, mine in families.items():
        panels = curves_of(group([run.folder for run in mine]), RETURN)
        fewest = min(
            len(c) for experiments in panels.columns.values() for c in experiments.values()
        )
        lines = {env: [(PUBLISHED, figures[env])] for env in panels.columns if env in figures}
        path = out.with_name(f"{out.name}_{name}.png")
        draw([panels], path, aggregate="iqm" if fewest > 2 else "mean", lines=lines)
        print(path)


def report(runs: Sequence[Run], arguments: Arguments, flags: Sequence[str]) -> None:
    rows = [run.row() for run in runs]
    sources = sorted({row["project"]["sources"] for row in rows})
    about = origins(rows) | {
        "steps": arguments.steps, "at_once": arguments.at_once, "flags": list(flags),
        "sources": sources,
    }  # fmt: skip
    figures = FIGURES.get(arguments.steps, {})
    found = summarise(rows, figures)
    given = f", with {' '.join(flags)}" if flags else ""
    title = (
        f"{arguments.steps:,} steps{given}; {about['machine']}, {arguments.at_once} at once,"
        f" {about['date']}, commit {about['commit']}, sources {', '.join(sources)}."
    )
    text = markdown(found, figures, title)
    arguments.out.with_name(f"{arguments.out.name}.md").write_text(text)
    content = about | found | {"runs": rows}
    path = arguments.out.with_name(f"{arguments.out.name}.json")
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(text)
    draw_families(runs, figures, arguments.out)


def main() -> None:
    with command("returns.py"):
        arguments, flags = typed(Arguments)
        begin_returns(arguments, flags)
        all_flags = (*flags, "--train_total_steps", str(arguments.steps))
        runs = [
            Run(env, seed, arguments.out / named(env, seed), all_flags)
            for env in arguments.envs
            for seed in arguments.seeds
        ]
        failed = complete(runs, arguments.at_once)
        done = [run for run in runs if run.scores.exists()]
        if done:
            report(done, arguments, flags)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
