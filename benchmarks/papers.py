"""Whether papers' claims hold here: `python benchmarks/papers.py --only 1810.12894 2111.02202`.

Each claim of `claims.py` says that one way of training reaches more than another. Both are trained with
the same seeds, by the code that `returns.py` uses, and compared by the probability that a run of the one
reaches more than a run of the other. A claim holds here if that is above one half, and a permutation test
finds that chance alone would bring it as far from there in less than 5% of cases; its contrary holds if it
is below, by the same test. Three seeds of each are too few for either.

Writes `<out>.md` and `<out>.json`; the runs are in the folder `<out>`, two claims share those that are
the same, and the same command goes on where it was interrupted. The table has all claims, with the seeds
that earlier calls have run, too; those without are not run.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from claims import CLAIMS, Claim
from runs import (
    Run,
    begin,
    command,
    complete,
    named,
    origins,
    refuse,
    refuse_counts,
    typed,
)

from common.statistics import chance_of_difference, probability_of_improvement
from plot import number
from settings.config import ConfigError
from settings.flags import read_flags
from settings.sources import parse

_LEVEL = 0.05  # of the test that decides


@dataclass
class Arguments:
    """Train what papers compare, and say which of their claims hold here. Flags of train.py for all runs
    follow `--`."""

    only: tuple[str, ...] = ()
    """The claims to run: beginnings of their names, such as a paper's number. Default: all, which takes
    days."""
    envs: tuple[str, ...] = ()
    """Of these, the ones in these environments. Default: in all."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """The seeds of each way of training."""
    steps: int | None = None
    """Environment steps of each run. Default: the claim's."""
    at_once: int = 1
    """Runs at the same time; they share the cores."""
    out: Path = Path("benchmarks/results/papers")
    """Where to write, without the ending."""


def chosen(arguments: Arguments) -> list[Claim]:
    """The claims to run.

    Raises:
        ConfigError: where there are none.
    """
    found = [
        claim
        for claim in CLAIMS
        if claim.name.startswith(arguments.only or "")
        and claim.env in (arguments.envs or [claim.env])
    ]
    if not found:
        names = ", ".join(sorted({claim.name.partition(":")[0] for claim in CLAIMS}))
        raise ConfigError(
            f"only is {', '.join(arguments.only)} and envs is {', '.join(arguments.envs)}, but there is"
            f" no such claim: give some of {names}, and environments of theirs"
        )
    return found


def begin_papers(arguments: Arguments, flags: Sequence[str]) -> list[Claim]:
    """Check the arguments, note in the runs' folder with what they are trained; the claims to run.

    Raises:
        UserError: where there is nothing to run, the claims decide on a flag, train.py would refuse
            something, or the folder's runs were trained with something else.
    """
    refuse_counts(arguments, "seeds", "at_once")
    claims = chosen(arguments)
    decided = {
        name: "the claims"
        for claim in claims
        for name in read_flags([*claim.common, *claim.better, *claim.other])
    }
    refuse(flags, decided | {"seed": "--seeds", "env": "--envs", "train_total_steps": "--steps"})
    for run in (run for claim in claims for run in both_ways(claim, arguments, flags)):
        parse(["--env", run.env, "--seed", str(run.seed), *run.flags])
    begin(arguments.out, {"steps": arguments.steps, "flags": list(flags)})
    return claims


def runs_of(claim: Claim, arguments: Arguments, flags: Sequence[str]) -> tuple[list[Run], ...]:
    """The runs of a claim's better way of training, one for each seed, and those of the other."""
    steps = str(arguments.steps or claim.steps)
    ways = []
    for env, way in claim.ways():
        whole = (*claim.common, *way, *flags, "--train_total_steps", steps)
        folder = arguments.out / hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:12]
        ways.append([Run(env, seed, folder / named(env, seed), whole) for seed in arguments.seeds])
    return tuple(ways)


def both_ways(claim: Claim, arguments: Arguments, flags: Sequence[str]) -> list[Run]:
    return [run for way in runs_of(claim, arguments, flags) for run in way]


class Scored(NamedTuple):
    """The runs of both ways, with all seeds of which both have been scored; and the seeds of which both have
    been begun, but not scored. (Other claims may have begun one of them with more seeds.)"""

    better: list[Run]
    other: list[Run]
    missing: list[int]


def scored(claim: Claim, arguments: Arguments, flags: Sequence[str]) -> Scored:
    """What there is of a claim, of earlier calls too."""
    ways = [way[0] for way in runs_of(claim, arguments, flags)]
    found: list[dict[int, Run]] = []
    begun: list[set[int]] = []
    for one in ways:
        begun.append(set())
        runs, name = {}, re.compile(re.escape(named(one.env, "")) + r"(\d+)")
        for path in one.folder.parent.glob("*"):
            # one that fails early leaves a log alone
            if seed := name.fullmatch(path.name.removesuffix(".json").removesuffix(".log")):
                run = one._replace(seed=int(seed[1]), folder=path.with_name(seed[0]))
                begun[-1].add(run.seed)
                if run.scores.exists():
                    runs[run.seed] = run
        found.append(runs)
    seeds = found[0].keys() & found[1].keys()
    better, other = ([runs[seed] for seed in sorted(seeds)] for runs in found)
    return Scored(better, other, sorted((begun[0] & begun[1]) - seeds))


def verdict(probability: float, chance: float) -> str:
    """What is said of the claim by the probability that the better way is better, which chance alone brings
    so far from one half with this probability."""
    if chance >= _LEVEL:
        return "not decided"
    return "holds" if probability > 0.5 else "the contrary holds"


def compared(claim: Claim, found: Scored) -> dict[str, Any]:
    """What has come of a claim: every seed's value, the probability of improvement, the verdict.

    Runs that fail may be the worst of their way, so without them there is no verdict.
    """
    better, other, missing = found
    result: dict[str, Any] = claim._asdict()
    incomplete = f"incomplete, without seed {', '.join(map(str, missing))}" if missing else None
    if not better:
        return result | {"missing": missing, "verdict": incomplete or "not run"}
    values = {
        name: np.array([run.row()[claim.measure] for run in runs], float)
        for name, runs in (("better", better), ("other", other))
    }
    probable = probability_of_improvement(values["better"], values["other"])
    chance = chance_of_difference(values["better"], values["other"])
    return result | {
        "values": {name: array.tolist() for name, array in values.items()},
        "seeds": [run.seed for run in better],
        "missing": missing,
        "probability": float(probable.value),
        "interval": None if np.isnan(probable.low) else [float(probable.low), float(probable.high)],
        "chance": chance,
        "verdict": incomplete or verdict(float(probable.value), chance),
    }


def markdown(results: Sequence[dict[str, Any]], title: str) -> str:
    lines = [
        "# Papers' claims", "", title, "",
        "| claim | environment | published | better way, every seed | other way, every seed"
        " | P(better) | 95% interval | by chance | here |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for result in results:
        envs = [result["env"], *([] if result["other_env"] is None else [result["other_env"]])]
        cells = [result["name"], " against ".join(envs), result["published"]]
        if "values" in result:
            cells += [", ".join(map(number, seeds)) for seeds in result["values"].values()]
            interval = result["interval"]
            cells += [f"{result['probability']:.2f}",
                      "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
                      f"{result['chance']:.3f}"]  # fmt: skip
        else:
            cells += ["-"] * 5
        lines.append(f"| {' | '.join([*cells, result['verdict']])} |")
    return "\n".join(lines) + "\n"


def report(arguments: Arguments, flags: Sequence[str]) -> None:
    """Write the table of all claims, and everything that it is made of: earlier calls' runs too."""
    found = [(claim, scored(claim, arguments, flags)) for claim in CLAIMS]
    results = [compared(claim, ways) for claim, ways in found]
    rows = [run.row() for _, ways in found for run in (*ways.better, *ways.other)]
    about = origins(rows) | {"steps": arguments.steps, "flags": list(flags)}
    length = "The claims' steps" if arguments.steps is None else f"{arguments.steps:,} steps"
    given = f", with {' '.join(flags)}" if flags else ""
    text = markdown(
        results,
        f"{length}{given}; {about['machine']}, {about['date']}, commit {about['commit']}.",
    )
    arguments.out.with_name(f"{arguments.out.name}.md").write_text(text)
    path = arguments.out.with_name(f"{arguments.out.name}.json")
    path.write_text(json.dumps(about | {"claims": results}, indent=1) + "\n")
    print(text)


def main() -> None:
    with command("papers.py"):
        arguments, flags = typed(Arguments)
        claims = begin_papers(arguments, flags)
        runs = [run for claim in claims for run in both_ways(claim, arguments, flags)]
        for run in runs:
            run.folder.parent.mkdir(exist_ok=True)
        failed = complete(list(dict.fromkeys(runs)), arguments.at_once)
        report(arguments, flags)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
