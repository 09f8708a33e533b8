# make demo | test | check | coverage | bench | torture | setup | lock
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: setup demo test check format coverage bench torture lock

setup: $(STAMP)

# --no-deps: the lock names every package, and leaves out what mmdet asks for and does not need.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: setup
	dvc repro
	@cat out/compare/table.md

# Two processes of one thread each: most networks of the tests are too small for more.
test: setup
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

# Which lines no test runs: a table, and pages in out/coverage.
coverage: setup
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --cov --cov-report term --cov-report html:out/coverage

check: setup
	ruff format --check .
	ruff check .
	mypy

format: setup
	ruff format .
	ruff check --fix .

# Kills passes and damages stores, many times: some 3 minutes.
torture: setup
	python -m tests.torture kills --count 50
	python -m tests.torture flips --count 500

# About 17 minutes. Some parts need the demo's teacher and labels, which are made where missing.
bench: setup
	dvc repro labels
	python -m benchmarks --large

# Needs uv. No index lines: the lock must not say where packages were fetched from.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--upgrade pyproject.toml -o requirements.lock
