# Two commands: `make demo` and `make test`. Each creates .venv and installs what it needs.
PYTHON ?= python3
RUN ?= runs/digits
BIN := .venv/bin

.PHONY: demo test slow tables faults clean

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# the main job on real digits: train, sample, score, judge; a second `make demo` resumes or reuses the trained model
demo: .venv/installed
	$(BIN)/python -m experiments.train --config=configs/digits.py --workdir=$(RUN)
	$(BIN)/python -m experiments.sample --workdir=$(RUN) --solver=dpm_solver_pp --steps=20 --num=64
	$(BIN)/python -m experiments.likelihood --workdir=$(RUN) --split=test --batch=180 --probes=2 --rtol=1e-3 --atol=1e-3
	$(BIN)/python -m experiments.evaluate --workdir=$(RUN)
	@echo
	@echo "Samples beside data   $(RUN)/eval/samples_and_data.png"
	@echo "Denoising, step by step   $(RUN)/samples/dpm_solver_pp_20_trajectory.png"
	@echo "Loss   $(RUN)/loss.png    Likelihoods   $(RUN)/eval/likelihood_test.png"
	@echo "Numbers   $(RUN)/eval/likelihood_test.json, $(RUN)/eval/metrics.json    Log   $(RUN)/log.jsonl"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 -m "not slow"

# with the peers that some are compared with; those of the report's page need a browser: apt-get install chromium chromium-driver
slow: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test,peers,browser]'
	$(BIN)/pytest -m slow

# every table that fits two cores, one after another, and the list of them in README.md: about three hours; interrupted, it goes on where it was
tables: .venv/installed demo
	$(BIN)/python -m experiments.tables --all --workdir=$(RUN)

# stop, kill, starve and corrupt runs, thousands of times
faults: .venv/installed
	$(BIN)/pytest tests/faults --faults -m ""

clean:
	rm -rf .venv runs
