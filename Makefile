# venv  demo  test  lab  bench  soak
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test check lab bench soak readme

venv: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv  ## adapt the shipped model to the shipped sample and write a report
	$(BIN)/paleotrain run dapt --preset demo

check: venv  ## what a machine can say without training anything
	$(BIN)/ruff check .
	$(BIN)/python tests/house.py
	$(BIN)/mypy

test: check  ## everything: checks, library notebooks, end-to-end tests
	$(BIN)/python tests/house.py --notebooks
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lab: venv
	$(BIN)/jupyter lab --ServerApp.root_dir=. nbs/index.ipynb

bench: venv
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_prepare.py
	$(BIN)/python tests/bench_scratch.py

soak: venv  ## every command of the README as it is written, about a quarter of an hour
	PALEOTRAIN_SOAK=1 $(BIN)/python -m pytest tests/test_readme.py -s

readme: venv  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/house.py --write-readme
