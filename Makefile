# VENV=path uses an existing environment; it is created if it does not exist.
VENV ?= .venv
PYTHON ?= python3
# Tests run in so many processes, a file of them at a time.
TEST_JOBS ?= 2
DEMO := output/demo
DEMO_CONFIG := configs/deformable_detr/deformable_detr_digits.py

BIN := $(VENV)/bin
REQUIREMENTS := $(VENV)/.detrx-requirements
PACKAGE := $(VENV)/.detrx-package
# Waiting threads give their core away, after a short spin: two-thread runs on a busy machine collapse otherwise.
OMP_WAIT_POLICY ?= PASSIVE
GOMP_SPINCOUNT ?= 20000
export OMP_WAIT_POLICY GOMP_SPINCOUNT

.PHONY: help setup demo test mutants lint format bench gpu-check gpu-folder clean

help:
	@echo "make setup      environment in $(VENV), detrx in it, kernels built"
	@echo "make demo       train a small Deformable DETR on digits, evaluate and draw it: $(DEMO)"
	@echo "make test       all tests"
	@echo "make mutants    plants faults into the CUDA kernels and sees whether the tests find them (long)"
	@echo "make lint       check style and types; make format mends the style"
	@echo "make bench      benchmarks of the kernels and of a training step on the CPU"
	@echo "make gpu-check  everything that wants a GPU: tests, compute-sanitizer, speed, training steps"
	@echo "make gpu-folder the same as a folder, for a machine without compiler and network"
	@echo "make clean      remove what was built"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(REQUIREMENTS): requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

$(PACKAGE): $(REQUIREMENTS) setup.py pyproject.toml detrx/__init__.py $(shell find csrc -type f)
	$(BIN)/python -m pip install -e . --no-build-isolation --no-deps
	@$(BIN)/python -m detrx.collect_env --kernels
	@touch $@

setup: $(PACKAGE)

demo: setup
	$(BIN)/python tools/lazyconfig_train_net.py --config-file $(DEMO_CONFIG) train.output_dir=$(DEMO)
	$(BIN)/python tools/plot_metrics.py $(DEMO)
	$(BIN)/python tools/demo.py --config-file $(DEMO_CONFIG) --weights $(DEMO)/model_final.pth \
		--dataset digits_val --num 16 --contact-sheet --output $(DEMO)/images

test: setup
	@$(BIN)/python -m tests.cuda_on_cpu.build
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

mutants: setup
	$(BIN)/python -m tests.cuda_on_cpu.mutants

lint: $(REQUIREMENTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(REQUIREMENTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/ms_deform_attn.py --device cpu
	$(BIN)/python benchmarks/moe.py --device cpu
	$(BIN)/python benchmarks/query_routing.py --device cpu
	$(BIN)/python benchmarks/training_step.py --device cpu

gpu-check: setup
	@$(BIN)/python -c "import torch; torch.cuda.is_available() or exit('gpu-check: torch sees no GPU')"
	cd benchmarks && $(abspath $(BIN))/python -c "import published; published.extension()"
	$(BIN)/python tools/gpu_check.py

# GPU_PYTHON=file: an interpreter with the Python and PyTorch of the GPU machine, to build with.
gpu-folder:
	$(PYTHON) tools/gpu_folder.py --python $(or $(GPU_PYTHON),$(error gpu-folder: GPU_PYTHON is not set))

clean:
	rm -rf build dist *.egg-info detrx/_C.*.so gpu_folder .pytest_cache .ruff_cache .mypy_cache $(PACKAGE)
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
