"""Runs grouped into experiments: those that differ in nothing but their seed are one."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from settings.config import ConfigError
from settings.owners import Cluster, Evaluation, Files
from settings.sources import load_run

# The settings in which the runs of one experiment may differ.
_WITHIN_EXPERIMENT = (
    {"seed", "continuous_action"}
    | {field.name for owner in (Cluster, Evaluation, Files) for field in dataclasses.fields(owner)}
) - {"straggler_share", "on_loss", "nan"}  # which decide on what is learned from


def group(run_dirs: Sequence[Path], labels: Sequence[str] = ()) -> dict[str, dict[str, list[Path]]]:
    """Environment -> label of an experiment -> its runs.

    A label is made of the settings that differ. A setting that no command has named is left out: it
    follows from the others, as the size of a batch follows from the number of environments. It stays
    in where two experiments would have the same label without it.

    Args:
        labels: the experiments' names instead, in the order of their first runs.

    Raises:
        ConfigError: where a folder is not that of a run, or the labels are too few or too many.
    """
    runs: dict[str, list[tuple[dict[str, str], Path]]] = defaultdict(list)
    # (Path.resolve raises for links that lead to themselves)
    for run_dir in {os.path.realpath(folder): folder for folder in run_dirs}.values():
        config = load_run(run_dir)
        settings = {k: str(v) for k, v in config.to_dict().items() if k not in _WITHIN_EXPERIMENT}
        runs[config.env].append((settings, run_dir))
    return {env: _experiments(env, members, labels) for env, members in runs.items()}


def _experiments(
    env: str, runs: Sequence[tuple[dict[str, str], Path]], labels: Sequence[str]
) -> dict[str, list[Path]]:
    """Label -> runs, of one environment's runs and their settings."""
    differing = [k for k in runs[0][0] if len({settings[k] for settings, _ in runs}) > 1]
    experiments: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for settings, run_dir in runs:
        experiments[tuple(settings[k] for k in differing)].append(run_dir)
    if labels and {len(labels), len(set(labels))} != {len(experiments)}:
        raise ConfigError(
            f"labels are {', '.join(labels)}, but {env} has {len(experiments)} experiments, which"
            f" differ in {', '.join(differing) or 'nothing'}: give each a name of its own"
        )
    if not all(label.strip() for label in labels):
        raise ConfigError(f"labels are {list(labels)}, but one is empty: give each a name")
    named = set().union(*(_flags(run_dir) for _, run_dir in runs))
    names = list(labels) or [_label(differing, values, named) for values in experiments]
    if len(set(names)) < len(names) or ("config" in named and not labels):  # a file may name any
        names = [_label(differing, values, set(differing)) for values in experiments]
    return dict(zip(names, experiments.values(), strict=True))


def _label(differing: Sequence[str], values: Sequence[str], shown: set[str]) -> str:
    pairs = [(k, v) for k, v in zip(differing, values, strict=True) if k in shown and v != "None"]
    return ", ".join(f"{name} {value}" for name, value in pairs) or "PPO"


def _flags(run_dir: Path) -> set[str]:
    """The settings that the command of a run has named."""
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    words = content.get("command") if isinstance(content, dict) else None
    flags = [
        str(word) for word in (words if isinstance(words, list) else []) if str(word)[:2] == "--"
    ]
    return {flag[2:].partition("=")[0].replace("-", "_").removeprefix("no_") for flag in flags}
