"""Which settings learn best: `python benchmarks/sweep.py --env CartPole-v1 --vary update_epochs=4,10`.

Each trial is a choice of settings, trained with every seed by `train.py`, with the flags that follow `--`.
A trial's score is the interquartile mean over its seeds of the return of the last 100 training episodes.
`--vary NAME=VALUE,VALUE` names values, `NAME=LOW..HIGH` and `NAME=LOW..HIGH:log` a range. Writes
`<out>.md` and `<out>.json`; the runs are in the folder `<out>`. The same command goes on where it was
interrupted, with more --trials or --seeds too: a run that has ended is not run again.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from runs import (
    Run,
    as_numbers,
    begin,
    command,
    commit,
    interval,
    machine,
    refuse,
    refuse_counts,
    train_all,
    typed,
)
from search import (
    Listed,
    Range,
    Settings,
    Space,
    Suggested,
    draws,
    first,
    flags_of,
    grid,
    read_space,
)

from common.cores import usable_cores
from common.statistics import estimate
from plot import number
from settings.config import Config, ConfigError
from settings.sources import parse

Search = Listed | Suggested


@dataclass
class Arguments:
    """Try settings with several seeds and sort them by what they reach. Flags of train.py follow `--`."""

    env: str
    """The environment."""
    vary: tuple[str, ...]
    """Settings and their values: update_epochs=4,10 or learning_rate=1e-4..1e-3:log."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """The seeds of each trial."""
    steps: int | None = None
    """Environment steps of each run. Default: the preset's."""
    trials: int | None = None
    """How many settings a search tries; a grid has all combinations. Default: 12."""
    search: Literal["grid", "random", "optuna"] | None = None
    """optuna: TPE, which goes by the trials before (`make optuna` installs it). Default: a grid of
    values, random where there are ranges."""
    at_once: int | None = None
    """Runs at the same time; they share out the cores. Default: one a core, or one on a cluster."""
    out: Path = Path("runs/sweep")
    """Where to write, without the ending."""


class Trial(NamedTuple):
    """Settings and the runs that try them, one a seed."""

    number: int
    settings: Settings
    runs: tuple[Run, ...]

    def row(self) -> dict[str, Any] | None:
        """What the trial has reached; None where a run of it has not."""
        summaries = [run.summary() for run in self.runs]
        returns = [s["train_return_last100"] if s is not None else None for s in summaries]
        if None in returns:
            return None
        found = np.array(returns, float)
        return {
            "trial": self.number, "settings": self.settings, **as_numbers(estimate(found, "iqm")),
            "mean": float(found.mean()), "seeds": found.tolist(),
        }  # fmt: skip


class Sweep:
    """The trials of a search, which are made of what those before have reached."""

    def __init__(self, arguments: Arguments, search: Search, flags: Sequence[str]):
        self.trials: list[Trial] = []
        self.flags, self._arguments, self._search = flags, arguments, search
        self._missing: dict[Run, Trial] = {}

    def runs(self) -> Iterator[Run]:
        """The runs that have not ended yet. They are asked for as there is room for them."""
        arguments = self._arguments
        for index in range(self._search.trials):
            settings = self._search.settings(index)
            flags = (*self.flags, *flags_of(settings))
            runs = tuple(
                Run(arguments.env, seed, arguments.out / f"t{index:02d}__s{seed}", flags)
                for seed in arguments.seeds
            )
            trial = Trial(index, settings, runs)
            self.trials.append(trial)
            left = [run for run in runs if run.summary() is None]
            self._missing |= dict.fromkeys(left, trial)
            if not left:
                self._tell(trial)
            yield from left

    def ended(self, run: Run) -> None:
        """Take note of the end of a run."""
        trial = self._missing.pop(run)
        print(f"{in_words(trial.settings)}, seed {run.seed}: {reached_by(run)}", flush=True)
        if trial not in self._missing.values():
            self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        row = trial.row()
        self._search.tell(trial.number, None if row is None else row["iqm"])


def reached_by(run: Run) -> str:
    summary = run.summary()
    if summary is None:
        return "failed"
    reached = summary["train_return_last100"]
    return "no episode has ended: give more --steps" if reached is None else number(reached)


def in_words(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def search_of(arguments: Arguments, space: Space) -> Search:
    """The search that is asked for.

    Raises:
        ConfigError: where it does not go with the rest.
    """
    ranges = any(isinstance(values, Range) for values in space.values())
    kind = arguments.search or ("random" if ranges else "grid")
    if kind == "grid" and arguments.trials is not None:
        raise ConfigError(
            f"trials is {arguments.trials}, but a grid tries all combinations: leave it out, or give"
            f" --search random"
        )
    trials = 12 if arguments.trials is None else arguments.trials
    if kind == "optuna":
        return Suggested(space, trials, arguments.out)
    return Listed(grid(space) if kind == "grid" else draws(space, trials))


def begin_sweep(arguments: Arguments, given: Sequence[str]) -> tuple[Sweep, int]:
    """Check everything before the first run, and note in the runs' folder what is tried.

    Args:
        given: the flags of train.py.

    Returns: the sweep, and how many of its runs there are at once.

    Raises:
        UserError: for what train.py would refuse, and for runs of another sweep in the folder.
    """
    refuse_counts(arguments, "seeds", "vary", "trials", "at_once")
    space = read_space(arguments.vary)
    decided = {"seed": "--seeds", "env": "--env", "train_total_steps": "--steps"}
    refuse(flags_of(first(space)), decided)
    refuse(given, decided | dict.fromkeys(space, "--vary"))
    flags = list(given)
    if arguments.steps is not None:
        flags += ["--train_total_steps", str(arguments.steps)]
    search = search_of(arguments, space)
    env = ["--env", arguments.env]
    configs = [parse([*env, *flags, *flags_of(settings)]) for settings in search.known]
    about = {"env": arguments.env, "flags": flags, "vary": list(arguments.vary)}
    begin(arguments.out, about | {"search": arguments.search})
    return Sweep(arguments, search, flags), arguments.at_once or default_at_once(configs[0])


def default_at_once(config: Config) -> int:
    """One run a core; one in all where runs would compete for the samplers of a cluster."""
    elsewhere = config.xparl_addr or config.ray_address or config.store
    return 1 if elsewhere else usable_cores()


def report(sweep: Sweep, arguments: Arguments) -> None:
    """Print and write the trials, the best one first, and the command that trains with its settings."""
    rows = [row for trial in sweep.trials if (row := trial.row()) is not None]
    rows.sort(key=lambda row: row["iqm"], reverse=True)
    summaries = [
        summary for trial in sweep.trials for run in trial.runs if (summary := run.summary())
    ]
    sources = sorted({summary["project"]["sources"] for summary in summaries})
    about = {
        "command": ["benchmarks/sweep.py", *sys.argv[1:]], "commit": commit(), "machine": machine(),
        "date": str(date.today()), "sources": sources,
    }  # fmt: skip
    path = arguments.out.with_name(f"{arguments.out.name}.json")
    path.write_text(json.dumps(about | {"trials": rows}, indent=1) + "\n")
    lines = [
        "# Sweep", "",
        f"{arguments.env}, return of the last 100 training episodes; {about['machine']},"
        f" {about['date']}, commit {about['commit']}; the runs' sources: {', '.join(sources)}.", "",
        "| settings | IQM | 95% interval | mean | every seed |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {in_words(row['settings'])} | {number(row['iqm'])} | {interval(row)}"
        f" | {number(row['mean'])} | {', '.join(map(number, row['seeds']))} |"
        for row in rows
    ]
    if rows:
        best = ["python", "train.py", "--env", arguments.env, *sweep.flags]
        best += flags_of(rows[0]["settings"])
        lines += ["", f"    {shlex.join(best)}"]
    left_out = len(sweep.trials) - len(rows)
    if left_out:
        lines += ["", f"Trials without a return of every seed, which are left out: {left_out}."]
    text = "\n".join(lines)
    arguments.out.with_name(f"{arguments.out.name}.md").write_text(text + "\n")
    print(text)


def main() -> None:
    with command("sweep.py"):
        arguments, flags = typed(Arguments)
        sweep, at_once = begin_sweep(arguments, flags)
        failed = train_all(sweep.runs(), at_once, sweep.ended)
        report(sweep, arguments)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
