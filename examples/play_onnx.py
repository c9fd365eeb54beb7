"""CartPole by an exported policy, with onnxruntime and gymnasium alone:

python evaluate.py RUN_DIR --export policy.onnx && python examples/play_onnx.py policy.onnx
"""

import sys

import gymnasium
import numpy as np
import onnxruntime

if len(sys.argv) != 2:
    sys.exit("play_onnx.py: name the exported policy: python examples/play_onnx.py policy.onnx")
session = onnxruntime.InferenceSession(sys.argv[1])
env = gymnasium.make("CartPole-v1")
for episode in range(5):
    obs, _ = env.reset(seed=episode)
    total, is_over = 0.0, False
    while not is_over:
        outputs = session.run(["action"], {"obs": obs[None]})  # [N, 4] -> [[N]], here N = 1
        action = np.asarray(outputs[0])[0]
        obs, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        is_over = terminated or truncated
    print(f"episode {episode}: return {total:g}")
