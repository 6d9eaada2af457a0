# Two commands do all the set-up on a fresh machine: `make chat` and `make test`.
# Everything else is for developers. Needs Python 3.11 or newer with venv; a C++ compiler only for the llama.cpp engine.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
DATA   ?= ../shared/data
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help chat test quick check fix fuzz llama bench sizes clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

chat: $(VENV)/.core $(VENV)/.llama ## install what is missing, then chat with the built-in model
	@$(BIN)/wattwise chat --plain

test: $(VENV)/.dev $(VENV)/.llama $(VENV)/.reference ## install what is missing, then check and test everything
	@$(MAKE) --no-print-directory check
	@WATTWISE_DATA=$(abspath $(DATA)) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

quick: $(VENV)/.dev ## the fast tests only
	@WATTWISE_DATA=$(abspath $(DATA)) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not reference"

check: $(VENV)/.dev ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

fix: $(VENV)/.dev ## let the linter mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

fuzz: $(VENV)/.dev $(VENV)/.llama ## feed broken files to every reader (MINUTES=10)
	@$(BIN)/python tools/fuzz.py --minutes $(or $(MINUTES),10)

llama: $(VENV)/.llama ## build the llama.cpp engine (needs a C++ compiler and cmake)

bench: $(VENV)/.llama $(VENV)/.reference ## measure against the bare engines (a quiet machine, ten minutes)
	@$(BIN)/python benchmarks/sdk_decode.py
	@$(BIN)/python benchmarks/onnx_vs_genai.py

sizes: ## the longest files and functions
	@$(PYTHON) tools/sizes.py

clean: ## remove the virtual environment and build products
	@rm -rf $(VENV) build dist

# Each stamp file stands for one finished installation step; it is older than what it was made from when that changes.

$(VENV)/.venv:
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "installing wattwise (about 250 MB with what it needs)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

# Never fails for want of a compiler: it says so, and everything but that engine works.
$(VENV)/.llama: $(VENV)/.core tools/build_llama.py
	@$(BIN)/python tools/build_llama.py --python $(BIN)/python
	@if $(BIN)/python -c 'import llama_cpp' 2>/dev/null; then touch $@; fi

$(VENV)/.dev: $(VENV)/.core
	@echo "installing the development tools"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.reference: $(VENV)/.dev
	@echo "installing the independent references for the tests: PyTorch, transformers, onnxruntime-genai (about 1 GB)"
	@$(PIP) install -c constraints.txt torch==2.13.0
	@$(PIP) install -c constraints.txt -e '.[reference,genai]'
	@touch $@
