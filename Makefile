# `make demo` from a fresh clone trains a supernet; `make lint test` is what a change has to pass.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what is imported, a small part of all that is installed.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --no-compile -c constraints.txt

# Where Python may not keep what it compiled, each process compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo test test-browser test-slow lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       install what training needs and train on handwritten digits, minutes on two CPU cores"
	@echo "make venv       install everything, development tools included, into .venv"
	@echo "make test       the default tests: offline, on the CPU"
	@echo "make test-browser  the pages of ofav2 report in Chromium and chromedriver, which have to be on the PATH"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove .venv and caches; runs stay"
	@echo "PYTHON=python3.12 make venv  chooses the interpreter (3.11 or newer)"

venv: $(VENV)/dev.stamp

# A stamp is newer than what its installation was made from, so an installation is redone only after a change there.
$(VENV)/run.stamp: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(INSTALL) -e '.[dev,eo]'
	@touch $@

demo: $(VENV)/run.stamp
	$(BIN)/ofav2 train digits

# As many processes as cores. Each starts with files of its own, so that what a file's tests share is made once, and takes
# over tests of the others when it is done.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal

test-browser: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal -m browser

# A file of tests/faults counts what all its tests found, so they are a group, which stays in one process.
test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist loadgroup -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
