# The first run makes a virtual environment in .venv with all that the demo and the tests need.
# It takes Python 3.11 or newer: `make test PYTHON=python3.12` if python3 is another one.

PYTHON ?= python3
BIN := .venv/bin
PIP := python -m pip --quiet --disable-pip-version-check
ARGS ?=
# Processes that run tests, which wait for most of their time: two for each core. `ARGS="-n 0"`: none.
JOBS ?= 4

PYTEST := PYTHONDEVMODE=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-all soak lint docs audit build bench bench-plot clean

demo: .venv/installed
	$(BIN)/python -m wspool demo $(ARGS)

test: .venv/installed
	$(PYTEST) $(ARGS)

# With the long searches.
test-all: .venv/installed
	WSPOOL_TEST_ALL=1 $(PYTEST) $(ARGS)

# Many minutes: many more schedules, long soaks, and each known fault put back once.
soak: .venv/installed
	WSPOOL_SCHEDULES=100000 $(BIN)/python -X dev -m pytest -s tests/explore/test_schedules.py
	$(BIN)/python -X dev -W error -m tests.explore.soak --seconds 120 $(ARGS)
	$(BIN)/python -X dev -W error -m tests.explore.soak --seconds 60 --borrowers 200 --threads
	$(BIN)/python -X dev -W error -m tests.explore.soak --seconds 60 --streams
	$(BIN)/python -X dev -W error -m tests.explore.soak --seconds 30 --borrowers 200 --threads --streams
	$(BIN)/python -X dev -W error -m tests.explore.limits --seconds 60
	$(BIN)/python -W error -m tests.explore.fuzz --seconds 180
	$(BIN)/python -m tests.explore.attacks
	$(BIN)/python -m tests.explore.mutations

lint: .venv/lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	PYTHONPATH=. PATH="$(abspath $(BIN)):$$PATH" $(BIN)/basedpyright --verifytypes wspool --ignoreexternal

docs: .venv/docs-installed
	$(BIN)/sphinx-build -W --keep-going -q -E docs build/docs
	@echo "build/docs/index.html"

# Whether an advisory is known for a dependency's lowest release; without a network it says so.
audit: .venv/audit-installed
	$(BIN)/python -m tests.support.floors

# The sdist and the wheel in dist, checked as a package index shows them, and installed;
# `make build ARGS=tests` tests them too.
build: .venv/release-installed
	$(BIN)/python -m tests.support.built $(or $(ARGS),--no-tests)

# Two to four minutes, on a machine that does nothing else. It has an environment of its own,
# because a peer pins an old websockets; that peer needs a Python below 3.13.
bench: .venv-bench/installed
	.venv-bench/bin/python -m tests.benchmarks --json build/benchmarks.json --markdown docs/explanation/costs.md $(ARGS)

# The picture of how it scales: a minute or two.
bench-plot: .venv-bench/installed
	.venv-bench/bin/python -m tests.benchmarks --plot docs/explanation/scaling.png $(ARGS)

clean:
	rm -rf .venv .venv-bench .tox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) install 'pip>=25.1'  # the first with dependency groups
	$(BIN)/$(PIP) install --editable '.[all]' --group test
	@touch $@

.venv-bench/installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(PIP) install 'pip>=25.1'
	.venv-bench/bin/$(PIP) install --editable . --group bench
	@mkdir -p build
	@touch $@

.venv/%-installed: .venv/installed
	$(BIN)/$(PIP) install --group $*
	@touch $@
