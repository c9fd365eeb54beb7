"""An environment of your own: `python ../train.py --env my_env:Docking`."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Docking(gymnasium.Env):
    """A ship on a line has to come to rest at position 0."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)  # position and velocity
    action_space = spaces.Box(-1, 1, (1,), np.float32)  # thrust

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.steps = 0
        return self.state.copy(), {}

    def step(self, action):
        position, velocity = self.state
        velocity += 0.1 * action[0]
        position += 0.1 * velocity
        self.state = np.array([position, velocity], np.float32)
        self.steps += 1
        reward = -float(position**2 + 0.1 * velocity**2)
        return self.state.copy(), reward, False, self.steps == 100, {}

    def get_state(self):
        """For checkpoints: with it, a run that was interrupted continues to the bit."""
        return {"state": self.state, "steps": np.asarray(self.steps)}

    def set_state(self, arrays):
        self.state, self.steps = arrays["state"].copy(), int(arrays["steps"])
