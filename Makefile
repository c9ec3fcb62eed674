# Needs make and Python 3.10 or newer, nothing else: every target makes the virtual environment that it works in.
#   make demo                     trains, loads and asks the example of the README, and stops
#   make test ARGS="-k cache"     a part of the tests
#   make test PYTHON=python3.12   with another interpreter
#   make help                     all targets

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
ARGS ?=
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev,docs
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

# The tests start hundreds of processes: with PYTHONDONTWRITEBYTECODE each of them would compile the package again.
COMPILE := $(BIN)/python -m compileall -q mlpkit

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-all test-lowest coverage slow audit bench bench-peers bench-storage bench-footprint bench-tails soak lint types docs docs-pictures docs-serve check format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.mlpkit-run ## trains examples/sentiment.py over HTTP, loads it, asks it three sentences, stops
	@$(COMPILE)
	@$(BIN)/python examples/demo.py

serve: $(VENV)/.mlpkit-run ## the same, but leaves the service running until Ctrl-C
	@$(BIN)/python examples/demo.py --serve

test: $(VENV)/.mlpkit-dev ## the test suite, without what takes minutes; ARGS="-k cache" runs a part
	@$(COMPILE)
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

# Each environment is a VENV of its own, so that this file makes it as it makes .venv.
test-all: ## the test suite with each Python from 3.10 on that is installed, and with the lowest versions of all packages
	@for minor in 10 11 12 13 14; do \
		python="python3.$$minor"; \
		if "$$python" -c '' 2>/dev/null; then \
			echo "== $$python"; \
			$(MAKE) test VENV=".venvs/$$python" PYTHON="$$python" ARGS="$(ARGS)" || exit 1; \
		else \
			echo "== $$python is not installed: skipped"; \
		fi; \
	done
	$(MAKE) test-lowest ARGS="$(ARGS)"

test-lowest: ## the test suite with the lowest versions that pyproject.toml allows (needs Python 3.10)
	$(MAKE) test VENV=.venvs/lowest PYTHON=$(or $(PYTHON),python3.10) CONSTRAINTS=constraints-lowest.txt EXTRAS=test ARGS="$(ARGS)"

coverage: $(VENV)/.mlpkit-dev ## the test suite with branch coverage, child processes included; fails below the limit in pyproject.toml
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n 2 -m "not slow and not untraced" $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

slow: $(VENV)/.mlpkit-dev ## the acceptance runs that take minutes
	@$(COMPILE)
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(VENV)/.mlpkit-dev ## mlpkit beside a bare ASGI callable and Starlette: two minutes (needs wrk)
	$(BIN)/python -m tests.benchmarks

bench-peers: $(VENV)/.mlpkit-dev ## installs the peers into .bench/, measures all, writes docs/benchmarks.md and its Chinese twin
	$(BIN)/python -m tests.benchmarks.peers

bench-storage: $(VENV)/.mlpkit-dev ## cache, download and upload beside curl and a loop of fput_object (needs curl, nginx and memcached)
	$(BIN)/python -m tests.benchmarks.storage

bench-footprint: $(VENV)/.mlpkit-dev ## start, memory and job start, empty and with 1,000 models and 10,000 jobs
	$(BIN)/python -m tests.benchmarks.footprint

bench-tails: $(VENV)/.mlpkit-dev ## p99 at a constant rate, and how far one web process goes (needs wrk)
	$(BIN)/python -m tests.benchmarks.tails
	$(BIN)/python -m tests.benchmarks.limit

soak: $(VENV)/.mlpkit-dev ## everything at once for MINUTES=10, with kills and outages, and then the accounts; SEED= repeats one
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) $(addprefix --seed ,$(SEED))

lint: $(VENV)/.mlpkit-dev ## ruff: rules and format; bandit over the package; spelling of code and pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive mlpkit
	$(BIN)/codespell mlpkit examples docs *.md

audit: $(VENV)/.mlpkit-dev ## known vulnerabilities of the versions in constraints.txt (fails where the advisories cannot be read)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

types: $(VENV)/.mlpkit-dev ## mypy --strict over package, tests and examples
	$(BIN)/mypy

docs: $(VENV)/.mlpkit-dev ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-pictures: $(VENV)/.mlpkit-dev ## screenshots and recording of the documentation, from real services (needs chromium)
	@$(PIP_INSTALL) pyte
	$(BIN)/python docs/pictures.py

docs-serve: $(VENV)/.mlpkit-dev ## the documentation on 127.0.0.1:8001, built again on every change
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

check: lint types docs test ## everything that a change must pass

format: $(VENV)/.mlpkit-dev ## lets ruff repair and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## removes what the other targets made
	rm -rf $(VENV) .venvs .coverage .bench site .mlpkit .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.mlpkit-run: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing mlpkit and the packages of the examples into $(VENV)"
	@$(PIP_INSTALL) --editable '.[examples,reload]'
	@touch $@

$(VENV)/.mlpkit-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing mlpkit and the packages for tests and documentation into $(VENV)"
	@$(PIP_INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.mlpkit-run

$(BIN)/python:
	@found=""; \
	for each in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10 python); do \
		if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found="$$each"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "mlpkit needs Python 3.10 or newer, and none was found$(if $(PYTHON), as $(PYTHON)): make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; \
	fi; \
	echo "making the virtual environment $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
