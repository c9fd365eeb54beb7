"""Learning curves: `python plot.py RUN_DIR... [--metrics NAME...] [--out curves.png]`.

Runs that differ in nothing but their seed are one experiment and one line: the mean of its seeds with
a 95% confidence band. Each metric has a row of panels, one per environment. A table of the experiments'
final values is printed.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from common.terminal import allow_short_help, end_with_the_reader, end_without, print_anything

try:
    import tyro
except ModuleNotFoundError as error:
    end_without(error.name, "plot.py")

import numpy as np

from common.errors import UserError
from common.statistics import Aggregate, Estimate, estimate, probability_of_improvement
from common.values import convert
from evaluation.curves import RETURN, Experiments, Panels, X, band, curves_of, read
from evaluation.published import figure_of
from settings.config import ConfigError
from settings.experiments import group
from settings.sources import load_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 6.4, 4.0  # of a panel, in inches
_ACROSS = 3  # panels side by side, at most
_LETTERS = 14  # of the legend's font in an inch
_NAMES = {
    RETURN: "mean training return", "eval/return_mean": "mean evaluation return",
    "followed/return_mean": "mean return of the followed versions",
}  # fmt: skip


@dataclass
class Arguments:
    """Draw the learning curves of runs, and print their final values."""

    run_dirs: Annotated[list[Path], tyro.conf.arg(metavar="RUN_DIR...")]
    """Folders of runs; several seeds of one experiment become one line."""
    out: Path = Path("curves.png")
    """The .png or .svg file to write."""
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--metric",))] = (RETURN,)
    """The metrics of metrics.jsonl or of followed.jsonl to draw, such as entropy, episode/win/coacAI or
    followed/return_mean: a row of panels each."""
    x: X = "steps"
    """What the metrics are drawn against: environment steps, training time or updates."""
    aggregate: Aggregate = "mean"
    """The line of several seeds: mean, with Student's confidence band, or iqm, the interquartile mean
    with a bootstrap band, for 3 seeds and more."""
    labels: tuple[str, ...] = ()
    """Names of the experiments, in the order in which they are given. Default: the settings that
    differ."""
    line: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A dashed line across the first metric's panels, "NAME VALUE", such as "cleanrl 2383", or that of
    one environment, "ENV NAME VALUE". May be given several times."""
    published: bool = True
    """Draw the best public PPO figure as a dashed line too, where docs/results.md has one for runs that
    are no longer than these and the first metric is a return."""


Styles = dict[str, tuple[str, Literal["-", ":"]]]  # label -> colour and dashes
Lines = dict[str, list[tuple[str, float]]]  # environment -> names and heights of dashed lines


def draw(
    rows: Sequence[Panels], out: Path, x: X = "steps", aggregate: Aggregate = "mean",
    lines: Lines | None = None,
) -> None:  # fmt: skip
    """Write a picture: a row of panels per metric, a panel per environment, one legend below.

    Args:
        lines: the dashed lines of each environment, in the first row.

    Raises:
        ConfigError: where the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import lines as shapes
    from matplotlib import pyplot, text

    columns = rows[0].columns
    across = min(len(columns), _ACROSS)
    deep = -(-len(columns) // across)  # rows of panels for each metric
    texts = _legend(columns, int(_WIDTH * across * _LETTERS) - 8)
    height = _HEIGHT * len(rows) * deep
    height += 0.2 * sum(words.count("\n") + 1 for words in texts.values())
    figure = pyplot.figure(figsize=(_WIDTH * across, height), layout="constrained")
    styles: Styles = {
        label: (f"C{i % 10}", "-" if i < 10 else ":") for i, label in enumerate(texts)
    }
    panels = figure.subplots(len(rows) * deep, across, squeeze=False).reshape(len(rows), -1)
    for axes, row in zip(panels, rows, strict=True):
        for axis in axes[len(columns) :]:
            axis.set_axis_off()
        for axis, (env, experiments) in zip(axes, row.columns.items(), strict=False):
            _draw_panel(axis, experiments, x, aggregate, styles)
            axis.set(title=env, ylabel=_NAMES.get(row.metric, row.metric))
    for axis, env in zip(panels[0], columns, strict=False):
        for name, value in (lines or {}).get(env, ()):
            axis.axhline(value, color="0.3", linestyle="--", linewidth=1)
            axis.annotate(
                f"{name}: {number(value)}", (0.01, value), xycoords=("axes fraction", "data"),
                xytext=(0, 2), textcoords="offset points", fontsize="small", color="0.3",
            )  # fmt: skip
    handles = [shapes.Line2D([], [], color=c, linestyle=style) for c, style in styles.values()]
    figure.legend(handles, texts.values(), loc="outside lower center", fontsize=9, frameon=False)
    for words in figure.findobj(text.Text):
        words.set_parse_math(False)  # a label's dollars are no formula
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise ConfigError(f"out {out} cannot be written: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def _draw_panel(
    axis: Axes, experiments: Experiments, x: X, aggregate: Aggregate, styles: Styles
) -> None:
    """Draw the lines and bands of a panel, and write its axes' numbers."""
    from matplotlib import ticker

    longest = max(curve.x[-1] for curves in experiments.values() for curve in curves)
    unit, name = 1.0, {"steps": "environment steps", "time": "seconds", "updates": "updates"}[x]
    if x == "time" and longest > 300:
        unit, name = (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")
    for label, curves in experiments.items():
        at, (value, low, high) = band(curves, aggregate)
        axis.plot(at / unit, value, color=styles[label][0], linestyle=styles[label][1])
        axis.fill_between(at / unit, low, high, color=styles[label][0], alpha=0.2, linewidth=0)
    thousands = ticker.FuncFormatter(lambda value, _: number(value))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep="") if x == "steps" else thousands)
    axis.yaxis.set_major_formatter(thousands)
    axis.set_xlabel(name)
    axis.grid(alpha=0.3)


def _legend(columns: Mapping[str, Experiments], letters: int) -> dict[str, str]:
    """Label -> what the legend says of it, in lines of at most so many letters."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for experiments in columns.values():
        for label, curves in experiments.items():
            seeds[label].add(len(curves))
    texts = {}
    for label, counts in seeds.items():
        count = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
        text = f"{label} ({count}\u00a0seed{'' if counts == {1} else 's'})"
        texts[label] = "\n".join(textwrap.wrap(text, letters))
    return texts


def number(value: float) -> str:
    """A number for people: 12,345 or 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(row: Panels, aggregate: Aggregate = "mean") -> str:
    """The experiments' final values, each seed's last one, in lines of text."""
    lines = []
    for env, experiments in row.columns.items():
        cells = [["experiment", aggregate, "95% interval", "seeds", "P(> first)", "95% interval"]]
        finals = {k: np.array([c.value[-1] for c in curves]) for k, curves in experiments.items()}
        first = next(iter(finals.values()))
        for place, (label, final) in enumerate(finals.items()):
            value = _cells(estimate(final, aggregate))
            better = _cells(probability_of_improvement(final, first)) if place else ["-", "-"]
            cells.append([label, *value, str(len(final)), *better])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines.append(f"{env}, {_NAMES.get(row.metric, row.metric)}, final value")
        for label, *numbers in cells:
            aligned = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([label.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def _cells(found: Estimate) -> list[str]:
    """A number and its interval."""
    value, low, high = (number(float(part)) for part in found)
    return [value, "-" if low == "nan" else f"{low} to {high}"]


def _lines(texts: Sequence[str], environments: Sequence[str]) -> Lines:
    lines: Lines = {env: [] for env in environments}
    for text in texts:
        name, _, value = text.rpartition(" ")
        env, _, short = name.partition(" ")
        try:
            height = convert(float, value)
        except ValueError as error:
            raise ConfigError(
                f"line is {text!r}, but must be a name and a number: {error}"
            ) from None
        label = short if env in lines else name
        if not label.strip():
            raise ConfigError(
                f"line is {text!r}, but must be a name and a number, after an environment or alone: give"
                f" it a name"
            )
        for place in [env] if env in lines else lines:
            lines[place].append((label, height))
    return lines


def _published(grouped: Mapping[str, Mapping[str, Sequence[Path]]]) -> Lines:
    """Others' figures for runs of these environments, which are no longer than any of these."""
    lines: Lines = {}
    for env, experiments in grouped.items():
        runs = [run for members in experiments.values() for run in members]
        found = figure_of(env, int(min(read(run, "global_step").value[-1] for run in runs)))
        lines[env] = [found] if found else []
    return lines


def _name_repeated_seeds(label: str, runs: Sequence[Path]) -> None:
    """Say on stderr where two runs of an experiment have one seed: they may be the same to the bit."""
    seeds = Counter(load_run(run).seed for run in runs)
    repeated = [str(seed) for seed, count in seeds.items() if count > 1]
    if repeated:
        print(
            f"plot.py: {label} has more than one run of seed {', '.join(repeated)}: if they are the"
            f" same, the band and the intervals are too narrow",
            file=sys.stderr,
        )


def plot(arguments: Arguments) -> None:
    """Do what the command line asks for.

    Raises:
        ConfigError: for a wrong argument or folder, with the remedy.
    """
    out, aggregate = arguments.out, arguments.aggregate
    if out.suffix not in (".png", ".svg"):
        raise ConfigError(f"out {out} must be a .png or .svg file: give a name that ends so")
    for name in ("run_dirs", "metrics"):
        if not getattr(arguments, name):
            raise ConfigError(
                f"{name} has nothing to draw: give one or more, and folders before --metrics"
            )
    grouped = group(arguments.run_dirs, arguments.labels)
    for env, experiments in grouped.items():
        for label, runs in experiments.items():
            if aggregate == "iqm" and len(runs) < 3:
                raise ConfigError(
                    f"aggregate iqm needs 3 seeds or more, but {label} has {len(runs)} in {env}:"
                    f" give more runs, or --aggregate mean"
                )
            _name_repeated_seeds(label, runs)
    rows = [curves_of(grouped, metric, arguments.x) for metric in arguments.metrics]
    lines = _lines(arguments.line, list(grouped))
    if arguments.published and arguments.metrics[0] in _NAMES:
        for env, found in _published(grouped).items():
            lines[env] += found
    draw(rows, out, arguments.x, aggregate, lines)
    for row in rows:
        print(table(row, aggregate))
    print(out)


def main() -> None:
    allow_short_help(sys.argv)
    end_with_the_reader()
    print_anything()
    arguments = tyro.cli(Arguments, prog="plot.py", config=(tyro.conf.PositionalRequiredArgs,))
    try:
        plot(arguments)
    except UserError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
