# Two commands: `make demo` and `make test`. Both create .venv and install what they need.
PYTHON ?= python3
RUN ?= runs/digits
BIN := .venv/bin

.PHONY: demo test slow lint clean

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/installed  # train on real digits, sample, score and judge them
	$(BIN)/python -m experiments.demo --workdir=$(RUN)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 -m "not slow"

slow: .venv/installed  # the tests that need minutes each
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv runs
