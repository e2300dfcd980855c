# make demo   a real study on a virtual board, ending with a report
# make test   every test
# make check  formatting, lint, types, import contracts and the unit tests
#
# Everything is installed into $(VENV), once; see deploy/setup.sh for PYTHON, TORCH and VENV.

VENV ?= .venv
STUDIES ?= studies
PYTEST_WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgefront-installed

# One thread for each of the parallel test processes; they would otherwise fight for the same cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint unit format docs bench clean distclean

help: ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## make the virtual environment and install everything, once

$(STAMP): pyproject.toml deploy/setup.sh
	@VENV='$(VENV)' sh deploy/setup.sh

demo: $(STAMP) ## run examples/digits.yaml on a virtual board and write its report
	@$(BIN)/edgefront run examples/digits.yaml --studies '$(STUDIES)'

test: $(STAMP) ## run every test (hardware tests excepted)
	@$(TEST_ENV) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup

check: lint unit ## format, lint, types, import contracts, unit tests

lint: $(STAMP) ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: $(STAMP) ## the unit tests only
	@$(TEST_ENV) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup tests/unit

format: $(STAMP) ## format every file and repair what lint can repair
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(STAMP) ## write the generated pages: study file, command line, metrics
	@$(BIN)/python docs/generate.py

bench: $(STAMP) ## measure the overhead per trial
	@$(TEST_ENV) $(BIN)/python bench/overhead.py

clean: ## remove caches and build products; studies and the virtual environment stay
	@rm -rf build dist export .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environment
	@rm -rf '$(VENV)'
