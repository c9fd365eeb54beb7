"""The learning curves of runs, out of the lines that training and followers have written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from common.statistics import Aggregate, Estimate, estimate
from settings.config import ConfigError

RETURN = "episode_return_mean"
_POINTS = 200
_COLUMNS = {"steps": "global_step", "time": "time_s", "updates": "update"}
_EVALUATION = "eval/"  # how the names of evaluations' metrics begin

X = Literal["steps", "time", "updates"]


class Curve(NamedTuple):
    """A metric of a run, against steps, seconds or updates."""

    x: np.ndarray
    value: np.ndarray


Experiments = dict[str, list[Curve]]  # label -> the curves of its seeds


class Panels(NamedTuple):
    """A row of panels: the experiments of each environment, by one metric."""

    metric: str
    columns: Mapping[str, Experiments]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None


def read(run_dir: Path, metric: str = RETURN, x: X = "steps") -> Curve:
    """The curve of a run. A resumed run repeats some updates: their later lines count.

    An evaluation ends some updates after the one whose weights it is of; against steps it is at theirs.

    Raises:
        ConfigError: where no line has the metric, for example because no episode has ended yet.
    """
    path, column = run_dir / "metrics.jsonl", _COLUMNS[x]
    if x == "steps" and metric.startswith(_EVALUATION):
        column = f"{_EVALUATION}{column}"
    evaluated = f"{_EVALUATION}global_step" if metric.startswith(_EVALUATION) else None
    # by update, or by the steps of the weights that were evaluated
    rows: dict[float, tuple[float, float]] = {}
    updates: dict[float, tuple[float, float]] = {}  # their steps, and where they are on the x axis
    known: set[str] = set()
    files = [file for file in (path, run_dir / "followed.jsonl") if file.is_file()]
    newest = -1.0
    for file, line in [(one, line) for one in files for line in _lines(one)]:
        try:
            metrics = json.loads(line)
            known |= {name for name in metrics if isinstance(name, str)}
            update = float(metrics["update"])
            if file == path:
                if update <= newest:  # a resumed run went on from before it
                    updates = {u: place for u, place in updates.items() if u < update}
                    left, until = max(updates.values(), default=(0.0, 0.0))
                    # the evaluation of weights that stay may have ended later
                    rows = {
                        k: (min(at, until), value)
                        for k, (at, value) in rows.items()
                        if (k <= left if evaluated else k < update)
                    }
                newest = update
                updates[update] = float(metrics["global_step"]), float(metrics[_COLUMNS[x]])
            at, value = (float(metrics[name]) for name in (column, metric))
            key = update if evaluated is None else float(metrics[evaluated])
        # the line that a killed run was writing, a metric that is null, or no line of a run
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            continue
        if np.isfinite([key, at, value]).all():
            rows[key] = (at, value)
    if not files:
        raise ConfigError(
            f"{run_dir} has no metrics.jsonl: a run writes it with its first update, and a policy that"
            f" was exported has none"
        )
    missing = [name for name in (metric, column) if name not in known]
    if known and missing:
        raise ConfigError(
            f"{path} has no metric {missing[0]!r}: give one of {', '.join(sorted(known))}"
        )
    if not rows:
        raise ConfigError(
            f"no line of {' or '.join(map(str, files))} has both {metric} and {column}: where no"
            f" episode has ended yet, train for longer; else give another --metrics or --x"
        )
    return Curve(*np.array([rows[key] for key in sorted(rows)]).T)


def band(curves: Sequence[Curve], aggregate: Aggregate = "mean") -> tuple[np.ndarray, Estimate]:
    """The part of the x axis [P] that all curves cover, and their aggregate [P] there."""
    first, last = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    x = np.linspace(min(first, last), last, _POINTS)
    return x, estimate(np.stack([np.interp(x, c.x, c.value) for c in curves]), aggregate)


def curves_of(
    grouped: Mapping[str, Mapping[str, Sequence[Path]]], metric: str = RETURN, x: X = "steps"
) -> Panels:
    """The curves of runs that `group` has grouped."""
    columns = {
        env: {label: [read(run, metric, x) for run in runs] for label, runs in members.items()}
        for env, members in grouped.items()
    }
    return Panels(metric, columns)
