from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common import checkpoint
from model import build_model
from settings.sources import preset


def untrained(env: str, folder: Path, **settings: Any) -> Path:
    """A run's folder with the initial weights."""
    config = preset(env)
    config.test_max_steps = 40
    for name, value in settings.items():
        setattr(config, name, value)
    weights = build_model(config).get_weights()
    arrays = {f"{checkpoint.MODEL}{name}": array for name, array in weights.items()}
    arrays["adam/decay"] = np.ones(2, np.float32)  # a run has more than its policy
    checkpoint.save(folder / "checkpoints", 1, arrays, {"update": 1, "global_step": 0})
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config.to_dict()}))
    return folder
