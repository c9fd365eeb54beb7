"""rl-games' PPO with EnvPool on the CPU, by its recipe for HalfCheetah; it prints its own rate."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

from rl_games.torch_runner import Runner

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
            "units": [128, 64, 32],
            "activation": "elu",
            "initializer": {"name": "default"},
        },
    },
    "config": {
        "name": "HalfCheetah-v4_envpool",
        "env_name": "envpool",
        "env_config": {"env_name": "HalfCheetah-v4", "has_lives": False, "seed": 5},
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
        "horizon_length": 256,
        "minibatch_size": 2048,
        "mini_epochs": 5,
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
