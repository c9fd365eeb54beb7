"""Plays whole episodes by an exported policy where neither torch nor the project can be imported.

    python plays_whole_episodes.py POLICY.onnx ENV EPISODES MODULE...

Prints the returns as JSON; episode i has the seed i. No MODULE can be imported.
"""

from __future__ import annotations

import json
import sys

from plays_alone import Refuses


def main(policy: str, env: str, episodes: str, *refused: str) -> None:
    sys.meta_path.insert(0, Refuses(list(refused)))  # pyright: ignore[reportArgumentType]
    import gymnasium
    import numpy as np
    import onnxruntime

    session, venv, returns = onnxruntime.InferenceSession(policy), gymnasium.make(env), []
    for seed in range(int(episodes)):
        obs, _ = venv.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            (action,) = session.run(["action"], {"obs": obs[None]})
            obs, reward, terminated, truncated, _ = venv.step(np.asarray(action)[0])
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    print(json.dumps(returns))


if __name__ == "__main__":
    main(*sys.argv[1:])
