"""stable-baselines3's PPO as it comes, on 8 environments; prints its rate after each rollout."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Rate(BaseCallback):
    """Steps/s from rollout to rollout, learning included."""

    def _on_training_start(self) -> None:
        self.then = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            now = time.perf_counter()
            print(
                "rate",
                round(self.model.n_steps * self.model.n_envs / (now - self.then)),
                flush=True,
            )
            self.then = now


torch.set_num_threads(1)
model = PPO("MlpPolicy", make_vec_env("HalfCheetah-v4", n_envs=8), device="cpu")
model.learn(100_000_000, callback=Rate())
