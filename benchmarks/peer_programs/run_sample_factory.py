"""sample-factory's APPO by its own MuJoCo recipe, on the CPU; it prints its own rate."""
# pyright: reportMissingImports=false
# (it runs in the peer's own environment)

import sys

from sf_examples.mujoco.train_mujoco import main

if __name__ == "__main__":  # its workers import this file again
    sys.argv += ["--env=mujoco_halfcheetah", "--device=cpu", "--experiment=timing"]
    sys.argv += ["--train_dir=runs"]
    sys.exit(main())
