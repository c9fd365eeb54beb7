"""The rate of a stable-baselines3 algorithm, printed after each rollout."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import time

from stable_baselines3.common.callbacks import BaseCallback


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
