"""Learning curves: `python plot.py RUN_DIR... [--out curves.png]`.

Runs that differ in nothing but their seed are one line, their mean with a 95% confidence band;
there is one panel per environment.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.terminal import allow_short_help
from settings.config import Config, ConfigError
from settings.owners import Cluster, Evaluation, Files
from settings.sources import load_run

# The settings in which the runs of one experiment may differ.
_WITHIN_EXPERIMENT = {"seed", "continuous_action"} | {
    field.name for owner in (Cluster, Evaluation, Files) for field in dataclasses.fields(owner)
}
# Student's t at 97.5% for 1, 2, ... degrees of freedom; for more, the normal distribution's 1.96.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_POINTS = 200
RETURN = "episode_return_mean"


@dataclass
class Arguments:
    """Draw the learning curves of runs."""

    run_dirs: list[Path]
    """Folders of runs; several seeds of one experiment become one line."""
    out: Path = Path("curves.png")
    """The PNG to write."""
    metric: str = RETURN
    """The metric of metrics.jsonl or of followed.jsonl to draw, such as entropy, episode/win/coacAI or
    followed/return_mean."""


class Curve(NamedTuple):
    """A metric against environment steps."""

    step: np.ndarray
    value: np.ndarray


def read(run_dir: Path, metric: str = RETURN) -> Curve:
    """The curve of a run. A resumed run repeats some updates: their later lines count.

    Raises:
        ConfigError: where no line has the metric, for example because no episode has ended yet.
    """
    path = run_dir / "metrics.jsonl"
    rows: dict[float, tuple[float, float]] = {}
    known: set[str] = set()
    files = [file for file in (path, run_dir / "followed.jsonl") if file.is_file()]
    for line in [line for file in files for line in file.read_text(errors="replace").splitlines()]:
        try:
            metrics = json.loads(line)
            known |= {name for name in metrics if isinstance(name, str)}
            update, step, value = (float(metrics[n]) for n in ("update", "global_step", metric))
        # the line that a killed run was writing, a metric that is null, or no line of a run
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            continue
        if np.isfinite([update, step, value]).all():
            rows[update] = (step, value)
    if not rows and metric not in known and known:
        raise ConfigError(
            f"{path} has no metric {metric!r}: give one of {', '.join(sorted(known))}"
        )
    if not rows:
        raise ConfigError(f"{path} has no finished episode to draw: train for longer")
    step, value = np.array([rows[update] for update in sorted(rows)]).T
    return Curve(step, value)


def band(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Steps [P] that all curves cover, the mean over curves [P], and half the width of its 95%
    confidence interval [P], or None for a single curve."""
    first, last = max(c.step[0] for c in curves), min(c.step[-1] for c in curves)
    step = np.linspace(min(first, last), last, _POINTS)
    values = np.stack([np.interp(step, c.step, c.value) for c in curves])
    if len(curves) == 1:
        return step, values[0], None
    t = _T[len(curves) - 2] if len(curves) - 2 < len(_T) else 1.96
    return step, values.mean(0), t * values.std(0, ddof=1) / np.sqrt(len(curves))


def group(run_dirs: list[Path], metric: str = RETURN) -> dict[str, dict[str, list[Curve]]]:
    """Environment -> label of an experiment -> the curves of its seeds."""
    runs: dict[str, list[tuple[Config, Curve]]] = defaultdict(list)
    for run_dir in run_dirs:
        config = load_run(run_dir)
        runs[config.env].append((config, read(run_dir, metric)))
    grouped: dict[str, dict[str, list[Curve]]] = {}
    for env, members in runs.items():
        settings = [
            {k: str(v) for k, v in config.to_dict().items() if k not in _WITHIN_EXPERIMENT}
            for config, _ in members
        ]
        differing = [k for k in settings[0] if len({s[k] for s in settings}) > 1]
        lines: dict[str, list[Curve]] = defaultdict(list)
        for one, (_, curve) in zip(settings, members, strict=True):
            lines[", ".join(f"{k} {one[k]}" for k in differing) or "PPO"].append(curve)
        grouped[env] = dict(lines)
    return grouped


def draw(
    grouped: dict[str, dict[str, list[Curve]]], out: Path, name: str = "mean training return"
) -> None:
    """Write a panel for each environment to the PNG `out`; `name` is that of the metric.

    Raises:
        ConfigError: where the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(2, len(grouped))
    rows = -(-len(grouped) // columns)
    figure = pyplot.figure(figsize=(6.4 * columns, 4.4 * rows), layout="constrained")
    for place, (env, lines) in enumerate(grouped.items(), start=1):
        axis = figure.add_subplot(rows, columns, place)
        for label, curves in lines.items():
            step, mean, half = band(curves)
            seeds = f"{len(curves)} seeds" if len(curves) > 1 else "1 seed"
            (line,) = axis.plot(step, mean, label=f"{label} ({seeds})")
            if half is not None:
                axis.fill_between(step, mean - half, mean + half, color=line.get_color(), alpha=0.2)
        axis.set(title=env, xlabel="environment steps", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise ConfigError(f"out {out} cannot be written: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def main() -> None:
    import tyro

    allow_short_help(sys.argv)
    arguments = tyro.cli(Arguments, prog="plot.py", config=(tyro.conf.PositionalRequiredArgs,))
    try:
        if arguments.out.suffix != ".png":
            raise ConfigError(f"out {arguments.out} must be a PNG: give a name that ends with .png")
        grouped = group(arguments.run_dirs, arguments.metric)
        name = "mean training return" if arguments.metric == RETURN else arguments.metric
        draw(grouped, arguments.out, name)
    except UserError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(arguments.out)


if __name__ == "__main__":
    main()
