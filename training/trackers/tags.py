"""The tags under which trackers show the metrics: `group/name`.

Pages show the groups by the alphabet, and the first one is open: episode, eval, loss, store, system,
time, train, trainer. So a page opens with the return.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_GROUPS = {
    "episode": ("episode_return_mean", "episode_length_mean"),
    "time": ("sps", "raw_sps", "time_s"),
    "system": (
        "samplers_alive", "restarts", "rows_lost", "lost_evaluations", "refused_updates",
        "dropped_fragments", "dropped_steps", "dropped_episodes",
    ),
}  # fmt: skip
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}
_X_AXIS = ("global_step", "eval/global_step")


def tagged(metrics: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """The finite numbers of a line of metrics.jsonl by their tags, at the environment steps they belong to.

    A name that has a group keeps it; of the others, those that are in no other group are in train. An
    evaluation belongs to the steps that its weights were trained for, and ends some updates later.
    """
    step = int(metrics["global_step"])
    evaluated = int(metrics.get("eval/global_step", step))
    found: dict[int, dict[str, float]] = {}
    for name, value in metrics.items():
        if isinstance(value, int | float) and math.isfinite(value) and name not in _X_AXIS:
            at = evaluated if name.startswith("eval/") else step
            found.setdefault(at, {})[_tag(name)] = value
    return found


def _tag(name: str) -> str:
    if "/" in name:
        return name
    group = _GROUP_OF.get(name, "train")
    return f"{group}/{name.removeprefix('episode_')}"
