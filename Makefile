# make demo | test | check | coverage | bench | gpu | torture | setup | lock
PYTHON ?= python3.11
VENV := .venv
# `make setup TORCH=keep` installs beside the torch that $(PYTHON) has; the environment remembers it.
KEPT := $(VENV)/kept.lock
TORCH ?= $(if $(wildcard $(KEPT)),keep,lock)
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: setup demo test check format coverage bench gpu torture lock

setup: $(STAMP)

# --no-deps: the lock names every package, and leaves out what mmdet asks for and does not need.
PIP := $(BIN)/pip --quiet --disable-pip-version-check install --no-deps
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),keep)
	@$(PYTHON) -c "import torch, torchvision; assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 9)" || \
		(echo "$(PYTHON) has no torch >= 2.9 with torchvision to keep" >&2; false)
	grep -vE '^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' requirements.lock > $(KEPT)
	rm -f $(VENV)/lib/python*/site-packages/kept.pth
	$(PIP) -r $(KEPT)
	$(PIP) --no-build-isolation -e .
	# Last, so that all of the lock is installed: what the environment lacks is found beside that torch.
	$(PYTHON) -c "import torch; print(torch.__path__[0].removesuffix('torch'))" \
		> $$(echo $(VENV)/lib/python*/site-packages)/kept.pth
else
	$(PIP) -r requirements.lock
	$(PIP) --no-build-isolation -e .
endif
	touch $(STAMP)

demo: setup
	dvc repro
	@cat out/compare/table.md

# Two processes of one thread each: most networks of the tests are too small for more. In the order of
# the folders: the files of few tests, which xdist would leave to the end, take longest.
PYTEST := OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST)

# Which lines no test runs: a table, and pages in out/coverage.
coverage: setup
	$(PYTEST) --cov --cov-report term --cov-report html:out/coverage

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

# On a machine with a GPU, with .venv or a given Python: `make gpu PYTHON=python3`. 8 minutes at most.
gpu:
	$(if $(filter file,$(origin PYTHON)),python3,$(PYTHON)) -m benchmarks.gpu

# Needs uv. No index lines: the lock must not say where packages were fetched from.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--upgrade pyproject.toml -o requirements.lock
