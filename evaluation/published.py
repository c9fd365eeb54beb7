"""Returns that others have published, to be drawn beside a run's own."""

from __future__ import annotations

PUBLISHED = "best public PPO figure we know of"
# Steps of a run -> environment -> mean return. docs/results.md says whose they are.
FIGURES: dict[int, dict[str, float]] = {
    20_000: {"MountainCarContinuous-v0": 88.3},
    100_000: {"CartPole-v1": 500, "Pendulum-v1": -172.2},
    1_000_000: {
        "HalfCheetah-v4": 5784, "Hopper-v4": 2680, "Walker2d-v4": 3927, "Ant-v4": 3258,
        "Humanoid-v4": 787, "Swimmer-v4": 282, "Reacher-v4": -4.1, "InvertedPendulum-v4": 1000,
        "InvertedDoublePendulum-v4": 9231, "LunarLander-v3": 242, "LunarLanderContinuous-v3": 271,
        "Acrobot-v1": -73.5, "MountainCar-v0": -110.4,
    },
    3_000_000: {
        "HalfCheetah-v4": 7337, "Hopper-v4": 3128, "Walker2d-v4": 4896, "Ant-v4": 4079,
        "Humanoid-v4": 1360, "PongNoFrameskip-v4": 19.5,
    },
    5_000_000: {"BipedalWalker-v3": 288},
    10_000_000: {"Humanoid-v4": 6146},
}  # fmt: skip


def figure_of(env: str, steps: int) -> tuple[str, float] | None:
    """The figure of an environment for the longest runs of at most so many steps, and its name.

    Args:
        steps: of the runs that it is drawn beside. A figure of longer runs would not be fair to them.
    """
    known = [length for length, figures in FIGURES.items() if env in figures and length <= steps]
    if not known:
        return None
    return f"best public PPO after {max(known):,} steps", FIGURES[max(known)][env]
