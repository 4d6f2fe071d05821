# Humans and CI use the same verbs. Only Python 3.11 or later and make are needed: `make run`.

PYTHON ?= python3
VENV   ?= .venv

PY      := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --editable . --requirement

.DEFAULT_GOAL := help
.PHONY: help run up test upstream check format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp ## Load 336,776 real flights as batches, with urgent calls meanwhile
	@$(PY) -m tasks.demo

up: $(VENV)/run.stamp ## Run broker, two workers and Flower (http://127.0.0.1:5555) until Ctrl-C
	@$(PY) -m tasks.up

# Hundreds of processes import the same modules, which are compiled once, whatever the shell says.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/dev.stamp ## Run all tests
	@$(PY) -m pytest -q -n 7 --dist loadfile --no-loadscope-reorder --durations 10

upstream: $(VENV)/upstream.stamp ## Run Celery's own integration suite on the engine
	@$(PY) -m tests.upstream

check: $(VENV)/dev.stamp ## Format, lint, types, import direction, script headers
	@$(PY) -m ruff format --quiet --check .
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy --no-error-summary
	@$(PY) -m pytest -q tests/architecture

format: $(VENV)/dev.stamp ## Rewrite the sources in the project's format
	@$(PY) -m ruff check --quiet --fix .
	@$(PY) -m ruff format --quiet .

bench: $(VENV)/dev.stamp ## Measure against stock Celery on this machine
	@$(PY) -m benchmarks all

clean: ## Remove the environment, caches and all data under .data/
	rm -rf $(VENV) .data .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# A stamp says what lies in the environment; it is old when what is asked for has changed.
$(VENV)/run.stamp: pyproject.toml tasks/requirements.txt | $(VENV)/bin/python
	@echo "Installing Celeriac, the demo, Valkey and Flower into $(VENV)"
	@$(INSTALL) tasks/requirements.txt
	@touch $@

$(VENV)/dev.stamp: pyproject.toml tasks/requirements.txt tests/requirements.txt | $(VENV)/bin/python
	@echo "Installing Celeriac and its development tools into $(VENV)"
	@$(INSTALL) tests/requirements.txt
	@touch $@

$(VENV)/upstream.stamp: pyproject.toml tests/upstream/requirements.txt | $(VENV)/bin/python
	@echo "Installing Celeriac and what Celery's own suite imports into $(VENV)"
	@$(INSTALL) tests/upstream/requirements.txt
	@touch $@
