PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
PY := $(VENV)/bin/python

ENV ?= HalfCheetah-v4
SEED ?= 1
# two minutes' worth of HalfCheetah; other environments run as long as their preset says
STEPS ?= $(if $(filter HalfCheetah-v4,$(ENV)),3000000)
ARGS ?=
# what `make sweep` tries
VARY ?= learning_rate=1e-4..1e-2:log

# runs of several trainers on this machine
TRAINERS ?= 2
SAMPLERS ?= 3

# the ready-made tasks: minutes at most, and samplers
TIME ?= 60
NWORKERS ?= 3
TASK = $(PY) train.py --max_minutes $(TIME) --samplers $(NWORKERS) --seed $(SEED)

# processors that the numerical tests imitate beside this machine's own: instruction sets by the
# names that oneDNN, torch, MKL and numba give them
AVX2 = ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=
AVX512 = ONEDNN_MAX_CPU_ISA=AVX512_CORE ATEN_CPU_CAPABILITY=avx512 MKL_ENABLE_INSTRUCTIONS=AVX512

.PHONY: run_lunar run_cartpole run_acrobot run_mountain_car run_store run_hogwild run_trainers mps_start \
	mps_stop mps_found venv dev ray export track optuna sweep train test quick \
	test-processors lint format hooks lock video-libs clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-nodeps.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -r requirements.txt
	$(PY) -m pip install --quiet --no-deps -r requirements-nodeps.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	touch $@

dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: requirements-dev.txt requirements-ray.txt requirements-export.txt \
		requirements-track.txt requirements-sweep.txt constraints.txt $(VENV)/.installed
	$(PY) -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	touch $@

# for --ray_address, on every machine of the cluster
ray: venv
	$(PY) -m pip install --quiet -c constraints.txt -r requirements-ray.txt

# for evaluate.py --export FILE.onnx
export: venv
	$(PY) -m pip install --quiet -c constraints.txt -r requirements-export.txt

# for train.py --track wandb, and for TensorBoard's page
track: venv
	$(PY) -m pip install --quiet -c constraints.txt -r requirements-track.txt

# for benchmarks/sweep.py --search optuna
optuna: venv
	$(PY) -m pip install --quiet -c constraints.txt -r requirements-sweep.txt

# make sweep ENV=CartPole-v1 VARY="update_epochs=4,10 learning_rate=1e-4..1e-3:log" ARGS="--trials 12"
sweep: venv
	$(PY) benchmarks/sweep.py --env $(ENV) --vary $(VARY) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

# several trainers cannot learn while their step is compiled
train: venv
	$(PY) train.py --env $(ENV) --seed $(SEED) $(if $(findstring --trainers,$(ARGS)),,--compile beside) $(if $(STEPS),--train_total_steps $(STEPS)) $(ARGS)

run_lunar: venv
	$(TASK) --env LunarLander-v3 --solve_score 200 --train_total_steps 2000000 $(ARGS)

run_cartpole: venv
	$(TASK) --env CartPole-v1 --solve_score 500 --train_total_steps 500000 $(ARGS)

run_acrobot: venv
	$(TASK) --env Acrobot-v1 --solve_score -85 --train_total_steps 2000000 $(ARGS)

run_mountain_car: venv
	$(TASK) --env MountainCar-v0 --solve_score -125 --train_total_steps 5000000 $(ARGS)

# several trainers; Ctrl-C, or SIGTERM, ends all processes of a run, after a checkpoint
SEVERAL = $(PY) train.py --env $(ENV) --seed $(SEED) --trainers $(TRAINERS)

# make run_store TRAINERS=2 SAMPLERS=3 ENV=HalfCheetah-v4: through a sample store of its own
run_store: venv
	$(SEVERAL) --samplers $(SAMPLERS) --store embedded $(ARGS)

# each trainer takes its own steps on one model in shared memory
run_hogwild: venv
	$(SEVERAL) --trainer_mode hogwild $(ARGS)

# every gradient step is that of all trainers
run_trainers: venv
	$(SEVERAL) --trainer_mode synchronous $(ARGS)

# CUDA MPS lets the kernels of several processes, such as Hogwild trainers, run on one GPU at the same
# time; without it they take turns. Start it before the run, and stop it after: the user's own processes
# then use it by themselves.
mps_start: mps_found
	nvidia-cuda-mps-control -d

mps_stop: mps_found
	echo quit | nvidia-cuda-mps-control

mps_found:
	@nvidia-smi -L 2> /dev/null | grep -q GPU \
		|| { echo "MPS needs an NVIDIA GPU, and \`nvidia-smi\` finds none: look at its driver"; exit 1; }
	@command -v nvidia-cuda-mps-control > /dev/null \
		|| { echo "there is no nvidia-cuda-mps-control: install NVIDIA's driver with its tools"; exit 1; }

test: dev video-libs
	$(PY) -m pytest $(ARGS)

# after every edit: under a minute on two cores
quick: dev
	$(PY) -m pytest -m "not slow" $(ARGS)

# the numerical tests again, as other processors compute; they wait for nothing, so two at once are
# enough. A processor can imitate those alone whose instructions it has. The third pass is for what
# computes in BF16 and AMX, which the second one switches off
BF16 = tests/test_agent.py tests/test_algorithm.py tests/test_model.py tests/networks tests/learning/test_native.py
NUMERICAL = $(PY) -m pytest -m numerical --numprocesses 2 $(ARGS)

test-processors: dev
	env $(AVX2) TEST_THREADS=1 $(NUMERICAL)
	if grep -qw avx512vl /proc/cpuinfo; then \
		env $(AVX512) TEST_THREADS=2 OMP_WAIT_POLICY=passive $(NUMERICAL); fi
	if grep -qwE "avx512_bf16|amx_tile" /proc/cpuinfo; then \
		env TEST_THREADS=2 OMP_WAIT_POLICY=passive $(NUMERICAL) $(BF16); fi

# formatters and linters are listed once, in .pre-commit-config.yaml
lint: dev
	$(VENV)/bin/pre-commit run --all-files --show-diff-on-failure
	$(PY) -m pyright

format: dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# run the linters at every commit
hooks: dev
	$(VENV)/bin/pre-commit install

# write constraints.txt anew: every package that the pinned ones bring, at the version tested
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet -r requirements.txt -r requirements-dev.txt
	{ echo "# Made by \`make lock\`: learners, workers and CI install the same versions."; \
		build/lock/bin/pip freeze | sed 's/+cpu$$//'; } > constraints.txt

# MuJoCo draws videos with OSMesa where there is no graphics card
video-libs:
	@$(PYTHON) -c "import ctypes.util, sys; sys.exit(ctypes.util.find_library('OSMesa') is None)" \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends libosmesa6 > /dev/null; } \
		|| echo "videos of MuJoCo need a system library: sudo apt-get install libosmesa6"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
