# Everything runs in .venv, which `install` makes; the second time it takes no time.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test e2e check bench clean
.DEFAULT_GOAL := install

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@echo "Installing into .venv: some minutes the first time, nothing after that."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --upgrade "pip>=25.1"  # the first that reads dependency groups
	@$(BIN)/pip install -qq --editable ".[cloud,train]" --group dev
	@touch $@

demo: install  ## train a small GPT on this machine, through the whole pipeline
	@$(BIN)/gptctl launch demo --cloud local --price-per-hour 0.10 --budget 0.05 --yes
	@echo "gptctl is in $(BIN): \`. $(BIN)/activate\` puts it on your PATH."

test: install
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --ignore tests/e2e

e2e: install  ## the real SkyPilot in a private data centre: tests/e2e/README.md; needs root
	$(BIN)/pytest -m e2e --durations 20 --durations-min 5 tests/e2e

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck .ci/run training/bootstrap.sh tests/e2e/*.sh
	$(BIN)/mypy
	$(BIN)/pytest --quiet tests/test_walls.py

bench: install  ## what the README claims about speed; wants an idle machine
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/estimate.py
	$(BIN)/python bench/checkpoint_stall.py --rounds 5
	$(BIN)/python bench/time_to_loss.py $(TEXT)
	$(BIN)/python bench/tokenizing.py
	$(BIN)/python bench/train_step.py
	$(BIN)/python bench/evaluation_cost.py $(EXAMPLES)
	$(BIN)/python bench/fast_recipe.py $(TEXTS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
