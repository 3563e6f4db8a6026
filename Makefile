# Two commands: `make repro` and `make test`. Both set up .venv first, and do nothing twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
READY  := $(VENV)/.ready
RUN    := PATH="$(BIN):$$PATH" DVC_NO_ANALYTICS=1 HYDRA_FULL_ERROR=0 TQDM_MININTERVAL=2

.DEFAULT_GOAL := help
.PHONY: help setup repro test lint show bench bench-cuda clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY) ## create .venv and install the pinned dependencies

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@# torch by name and version first: other ways of asking for it pull gigabytes of CUDA packages
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $$($(BIN)/python -c 'import tomllib; \
	  p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *sum(p["optional-dependencies"].values(), []))' | sed 's/>=[0-9.]*//g')
	@touch $@

repro: setup ## run the whole pipeline (dvc repro); what is cached is not run again
	@echo "== dvc repro: corpus and tasks, base_model, train and baseline, evaluate and compare, report"
	@$(RUN) dvc repro
	@$(BIN)/python -c 'import pandas; print(pandas.read_csv("results/compare/figures.csv").to_string(index=False))'
	@echo "== the report is results/report/index.html"

test: setup ## run the whole test suite
	@echo "== pytest"
	@$(RUN) python -m pytest

lint: setup ## check style
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

# what `make show` leaves out: intervals, probabilities, baselines, hashes (dvc exp show has them all)
UNSHOWN := Created|Executor|parameters|(models|results|data|pipeline|stages|tasks)\b.*|.*(ci_|p_value|prob|first|maj@[24]|helped|hurt|agreement|perplexity|base|pause|no_thought|thoughts off|mixing|n_tokens)

show: setup ## compare experiments in a readable table
	@$(RUN) dvc exp show --only-changed --drop '$(UNSHOWN)' --hide-workspace

bench: setup ## measure the engine on this CPU: results/bench/cpu.md (about six minutes)
	@$(RUN) python -m pipeline.bench.suite cpu

bench-cuda: ## the GPU's tests and benchmark: results/bench/cuda.md; in the active environment, with a CUDA build of torch
	@$(PYTHON) -m pytest -m cuda tests/thought
	@$(PYTHON) -m pipeline.bench.suite cuda

clean: ## remove .venv and outputs; the cache stays, so `make repro` brings them back
	rm -rf $(VENV) data models results/report
