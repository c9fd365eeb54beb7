"""stable-baselines3's PPO as it comes, on 8 environments; prints its rate after each rollout."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import torch
from sb3_rate import Rate
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

torch.set_num_threads(1)
model = PPO("MlpPolicy", make_vec_env("HalfCheetah-v4", n_envs=8), device="cpu")
model.learn(100_000_000, callback=Rate())
