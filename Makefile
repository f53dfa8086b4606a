# Two commands to know: `make demo` and `make test`. Both set up .venv first, which needs the network
# once; later runs compare what is asked for with what was installed, and work offline.

PY := .venv/bin/python
# Processes for the ordinary tests; `make test JOBS=1` when the machine is shared.
JOBS ?= auto
# For the tests with real processes: these wait more than they compute.
SYSTEM_JOBS ?= 2

.DEFAULT_GOAL := help
# One after the other and in the order written, also under `make -j`; pytest is parallel by itself.
.NOTPARALLEL:
.PHONY: help setup demo test check format reference lint types imports unit system bench notebooks cover dashboard clean

help:
	@echo 'make demo       run the experiment: load, outage, recovery, memory, model, report'
	@echo 'make test       everything that must hold: check, tests, tests with real processes'
	@echo 'make check      format, lint, types, import contracts'
	@echo 'make bench      measure: speed beside Postfix, memory per envelope, the model, the load'
	@echo 'make notebooks  run every notebook'
	@echo 'make cover      branch coverage; mta.core must have all of it'
	@echo 'make reference  docs/reference, from the code'
	@echo 'make dashboard  docs/dashboard.png, of a real run'
	@echo 'make setup      only install into .venv'

# ---- set-up

# The first of these that runs and is 3.11 to 3.13; a newer one if there is nothing else.
PYTHONS := python3 python3.13 python3.12 python3.11 python3.14
find-python = for minor in 13 99; do for python in $(PYTHON) $(PYTHONS); do \
	"$$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$minor))" 2>/dev/null \
	&& { echo "$$python"; exit 0; }; done; done; exit 1

# What was asked for, as one line: dependencies, pins, place and Python. Settings of tools are not part.
define wanted
import hashlib, pathlib, sys, tomllib
asked = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
parts = asked["project"], asked["build-system"], asked["tool"]["setuptools"]
pins = pathlib.Path("constraints.txt").read_text()
print(hashlib.sha256(repr((parts, pins, str(pathlib.Path.cwd()), sys.version)).encode()).hexdigest())
endef
export wanted
STAMP := .venv/mta-testbed.installed

setup:
	@if ! $(PY) -c '' 2>/dev/null; then \
		if [ -e .venv ]; then echo 'setup: .venv has no working Python: remove it and try again' >&2; exit 2; fi; \
		python=$$($(find-python)) || { \
			echo 'setup: no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python3' >&2; exit 2; }; \
		echo "setup: making .venv with $$($$python -V)"; \
		"$$python" -m venv .venv || { rm -rf .venv; \
			echo "setup: $$python cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 2; }; \
	fi
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "setup: .venv has $$($(PY) -V), 3.11 or newer is needed: remove .venv and try again" >&2; exit 2; }
	@want=$$($(PY) -c "$$wanted") || exit 2; \
	if [ "$$want" != "$$(cat $(STAMP) 2>/dev/null)" ]; then \
		echo 'setup: installing into .venv (once; a few minutes)'; \
		$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null || exit 2; \
		$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks,cluster]' || { \
			echo 'setup: pip failed, see above; it needs the package registry once' >&2; exit 2; }; \
		echo "$$want" > $(STAMP); \
	fi

# ---- the experiment

demo: setup
	@.venv/bin/testbed run backlog

# ---- what must hold

# All four, also when one fails: whoever mends one wants to see the others.
check: setup
	@$(MAKE) --no-print-directory --keep-going format lint types imports

reference: setup
	$(PY) -m mta.reference docs/reference

format: setup
	@echo '--- format'
	@$(PY) -m ruff format --check --output-format concise .
lint: setup
	@echo '--- lint'
	@$(PY) -m ruff check .
types: setup
	@echo '--- types'
	@$(PY) -m mypy
imports: setup
	@echo '--- who may import whom'
	@.venv/bin/lint-imports --no-logo

unit: setup
	@echo '--- tests'
	@$(PY) -m pytest -q -n $(JOBS) --dist loadfile

system: setup
	@echo '--- tests with real processes'
	@$(PY) -m pytest -q -m system -n $(SYSTEM_JOBS) --timeout 300

test: check unit system

bench: setup
	@$(PY) -m pytest -m benchmark -s -q --timeout 1800

notebooks: setup
	@echo '--- notebooks'
	@$(PY) -m pytest -q --nbmake --nbmake-timeout 300 --timeout 600 notebooks

cover: setup
	@$(PY) -m coverage erase
	@$(PY) -m coverage run -m pytest -q
	@$(PY) -m coverage combine -q
	@$(PY) -m coverage report
	@echo '--- mta.core, which must have all of it'
	@$(PY) -m coverage report --include 'mta/core/*' --fail-under 100

# Takes a minute, and needs Chromium.
dashboard: setup
	@$(PY) -m tests.support.screenshot docs

clean:
	@rm -rf build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find mta sim testbed loadtests tests -name __pycache__ -type d -prune -exec rm -rf {} +
