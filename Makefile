PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

ENV ?= HalfCheetah-v4
SEED ?= 1
# two minutes' worth of HalfCheetah; other environments run as long as their preset says
STEPS ?= $(if $(filter HalfCheetah-v4,$(ENV)),3000000)
ARGS ?=

# the ready-made tasks: minutes at most, and samplers
TIME ?= 60
NWORKERS ?= 3
TASK = $(PY) train.py --max_minutes $(TIME) --samplers $(NWORKERS) --seed $(SEED)

.PHONY: run_lunar run_cartpole run_acrobot run_mountain_car venv dev train test lint format video-libs clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-nodeps.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	$(PY) -m pip install --quiet --no-deps -r requirements-nodeps.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	touch $@

dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

train: venv
	$(PY) train.py --env $(ENV) --seed $(SEED) $(if $(STEPS),--train_total_steps $(STEPS)) $(ARGS)

run_lunar: venv
	$(TASK) --env LunarLander-v3 --solve_score 200 --train_total_steps 2000000 $(ARGS)

run_cartpole: venv
	$(TASK) --env CartPole-v1 --solve_score 500 --train_total_steps 500000 $(ARGS)

run_acrobot: venv
	$(TASK) --env Acrobot-v1 --solve_score -85 --train_total_steps 2000000 $(ARGS)

run_mountain_car: venv
	$(TASK) --env MountainCar-v0 --solve_score -125 --train_total_steps 5000000 $(ARGS)

test: dev video-libs
	$(PY) -m pytest $(ARGS)

lint: dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# MuJoCo draws videos with OSMesa where there is no graphics card
video-libs:
	@$(PYTHON) -c "import ctypes.util, sys; sys.exit(ctypes.util.find_library('OSMesa') is None)" \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends libosmesa6 > /dev/null; } \
		|| echo "videos of MuJoCo need a system library: sudo apt-get install libosmesa6"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
