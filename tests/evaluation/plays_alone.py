"""Acts by an exported policy where neither torch nor the project can be imported.

    python plays_alone.py POLICY.onnx EPISODES.npz ACTIONS.npy MODULE...

EPISODES.npz has `obs` [T, N, ...] and perhaps `action_mask` [T, N, A] of N episodes. The actions
[T, N, ...] are computed in batches of different sizes. No MODULE can be imported.
"""

from __future__ import annotations

import sys
from typing import Any


class Refuses:
    """Finds no module of the given names."""

    def __init__(self, names: list[str]):
        self._names = set(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"{name} cannot be imported here", name=name)


def main(policy: str, episodes: str, answers: str, *refused: str) -> None:
    sys.meta_path.insert(0, Refuses(list(refused)))  # pyright: ignore[reportArgumentType]
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(policy)
    given = np.load(episodes)
    takes = {place.name: place.shape for place in session.get_inputs()}
    gives = [place.name for place in session.get_outputs()]
    steps, envs = given["obs"].shape[:2]
    batches = [slice(0, envs - 8), slice(envs - 8, envs - 1), slice(envs - 1, envs)]
    actions: list[list[np.ndarray]] = [[] for _ in range(steps)]
    for rows in batches:
        feeds = {}
        if "state" in takes:
            feeds["state"] = np.zeros((rows.stop - rows.start, takes["state"][1]), np.float32)
        for t in range(steps):
            feeds |= {name: given[name][t, rows] for name in takes if name != "state"}
            outputs = dict(zip(gives, session.run(None, feeds), strict=True))
            actions[t].append(np.asarray(outputs["action"]))
            if "state" in takes:
                feeds["state"] = outputs["next_state"]
    np.save(answers, np.stack([np.concatenate(parts) for parts in actions]))


if __name__ == "__main__":
    main(*sys.argv[1:])
