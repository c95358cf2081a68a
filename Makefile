# Every target does its own set-up first; what is done already is skipped.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup venv engines torchao demo check test bench retrain results lock clean

python := .venv/bin/python
in_ros := $(python) -m tools.ros_env

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo
	@echo '  TORCH_INDEX=URL   take torch from this index, as long as .venv lives;'
	@echo '                    PyTorch has one of CPU builds: no CUDA, 2 GB less'
	@echo '  PYTHON=PATH       the Python 3.12 to use'

setup: ## everything a shell needs, in .venv and ros2_ws/install
	@python=$$(tools/find_python.sh) && "$$python" -m tools.bootstrap

venv:
	@python=$$(tools/find_python.sh) && "$$python" -m tools.bootstrap --no-ros

engines: venv ## TensorRT for RTX in .venv: builds engines, tested where it is there; proprietary
	@.venv/bin/uv pip install --quiet --python $(python) -r requirements/engines.txt || \
	  $(python) -m pip install --quiet -r requirements/engines.txt

torchao: venv ## torchao in .venv, for int8 and int4 weights of the language model
	@.venv/bin/uv pip install --quiet --python $(python) -r requirements/quantization.txt || \
	  $(python) -m pip install --quiet -r requirements/quantization.txt

demo: setup ## a synthetic drive through the whole stack; results in out/demo
	@$(in_ros) $(python) -m sparseoccvla_ros.demo

check: venv ## the gate: format, lint, types, layers, unit and contract tests
	@$(python) -m tools.checks check

test: setup ## check, and the ros, parity and slow tests
	@$(python) -m tools.checks test

bench: setup ## measure; results in benchmarks/*.json
	@for script in benchmarks/*.py; do $(in_ros) $(python) $$script || exit 1; done

retrain: venv ## train the tiny model anew, on generated data; hours, goes on after a kill
	@$(python) -m tools.retrain

results: venv ## measure the shipped model; docs/results.md
	@$(python) -m tools.results

lock: venv ## resolve requirements/*.txt anew; UPGRADE="name ..." moves these
	@PATH="$$PWD/.venv/bin:$$PATH" $(python) -m tools.lock $(UPGRADE)

clean: ## remove what the build made: .venv, ros2_ws/{build,install,log}, out
	rm -rf .venv ros2_ws/build ros2_ws/install ros2_ws/log out
