# Each target sets up what it needs, on a bare machine too: a virtual environment in .venv, with pinned packages.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test sweep zoo benchmark wheel clean

demo: $(READY)
	$(BIN)/python -m recipes.quickstart

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

sweep: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m sweep

zoo: $(READY) .venv/.zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.zoo --write docs/zoo.md

benchmark: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.benchmarks

wheel: $(READY)
	rm -rf build # what lies in it from before would get into the wheel
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation -q -w dist .

$(READY): requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

.venv/.zoo: requirements-zoo.txt requirements.txt $(READY)
	$(BIN)/python -m pip install -q -r requirements.txt -r requirements-zoo.txt # together, so that torch stays what it is
	touch $@

clean:
	rm -rf .venv build dist results *.egg-info
