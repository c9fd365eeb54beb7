"""stable-baselines3's PPO on Pong by its zoo's recipe; prints its rate after each rollout."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import ale_py  # noqa: F401  it registers the games
from sb3_rate import Rate
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

model = PPO(
    "CnnPolicy", VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=8), n_stack=4),
    n_steps=128, n_epochs=4, batch_size=256, learning_rate=2.5e-4, clip_range=0.1, vf_coef=0.5,
    ent_coef=0.01, device="cpu",
)  # fmt: skip
model.learn(100_000_000, callback=Rate())
