"""sb3-contrib's RecurrentPPO by rl-baselines3-zoo's recipe; prints its rate after each rollout."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import torch
from sb3_contrib import RecurrentPPO
from sb3_rate import Rate
from stable_baselines3.common.env_util import make_vec_env

torch.set_num_threads(1)
model = RecurrentPPO(
    "MlpLstmPolicy", make_vec_env("CartPole-v1", n_envs=8), device="cpu", n_steps=32, batch_size=256,
    n_epochs=20, gamma=0.98, gae_lambda=0.8, ent_coef=0.0, learning_rate=lambda left: 1e-3 * left,
    clip_range=lambda left: 0.2 * left,
)  # fmt: skip
model.learn(100_000_000, callback=Rate())
