"""rl-games' PPO with EnvPool on the CPU, by its recipe for the task that is named; it prints its own rate."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import sys

from rl_games.torch_runner import Runner

# network, steps of each of 64 environments, minibatch, epochs: configs/mujoco/*_envpool.yaml
TASKS = {
    "HalfCheetah-v4": ([128, 64, 32], 256, 2048, 5),
    "Ant-v4": ([256, 128, 64], 64, 2048, 4),
    "Humanoid-v4": ([512, 256, 128], 64, 1024, 4),
}
TASK = sys.argv[1]
UNITS, HORIZON, MINIBATCH, EPOCHS = TASKS[TASK]
PARAMS = {
    "seed": 1,
    "algo": {"name": "a2c_continuous"},
    "model": {"name": "continuous_a2c_logstd"},
    "network": {
        "name": "actor_critic",
        "separate": False,
        "space": {
            "continuous": {
                "mu_activation": "None",
                "sigma_activation": "None",
                "mu_init": {"name": "default"},
                "sigma_init": {"name": "const_initializer", "val": 0},
                "fixed_sigma": True,
            }
        },
        "mlp": {
            "units": UNITS,
            "activation": "elu",
            "initializer": {"name": "default"},
        },
    },
    "config": {
        "name": f"{TASK}_envpool",
        "env_name": "envpool",
        "env_config": {"env_name": TASK, "has_lives": False, "seed": 5},
        "device": "cpu",
        "device_name": "cpu",
        "score_to_win": 1e9,
        "normalize_input": True,
        "normalize_value": True,
        "value_bootstrap": True,
        "normalize_advantage": True,
        "reward_shaper": {"scale_value": 1},
        "gamma": 0.99,
        "tau": 0.95,
        "learning_rate": 3e-4,
        "lr_schedule": "adaptive",
        "kl_threshold": 0.008,
        "grad_norm": 1.0,
        "entropy_coef": 0.0,
        "truncate_grads": True,
        "e_clip": 0.2,
        "clip_value": True,
        "num_actors": 64,
        "horizon_length": HORIZON,
        "minibatch_size": MINIBATCH,
        "mini_epochs": EPOCHS,
        "critic_coef": 2,
        "bounds_loss_coef": 0.0,
        "max_epochs": 100_000,
        "save_best_after": 1_000_000,
        "save_frequency": 1_000_000,
        "print_stats": True,
    },
}

runner = Runner()
runner.load({"params": PARAMS})
runner.reset()
runner.run({"train": True})
