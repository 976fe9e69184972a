# Every target sets up .venv first, so that each works on a machine with nothing but Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
AUDIT := build/audit/bin/pip-audit
# Whether the index is one that knows weaknesses, as mirrors do not: this version has some.
ANSWERS := import json, urllib.request; json.load(urllib.request.urlopen("https://pypi.org/pypi/jinja2/3.1.0/json", timeout=5))["vulnerabilities"][0]
SEED ?= 0
SHARED := --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-gpu mutants soak bench docs check audit fix clean

quickstart: $(READY)  ## from nothing to a report: base model, SFT, reward model, PPO, evaluation
	$(BIN)/llm-rlhf run recipes/quickstart.yaml seed=$(SEED) $(if $(filter-out 0,$(SEED)),output_dir=runs/quickstart-seed-$(SEED))

test: $(READY)  ## everything; what is for a GPU runs on a stand-in of one
	$(BIN)/python -m pytest $(SHARED) --ignore=tests/gpu
	LLM_RLHF_TEST_DEVICE=stand-in $(BIN)/python -m pytest $(SHARED) tests/gpu

test-fast: $(READY)  ## without whole chains and the slow ones
	$(BIN)/python -m pytest $(SHARED) --ignore=tests/pipeline -m "not slow"

test-gpu: $(READY)  ## what only a GPU can show, on one; all other tests hide it
	LLM_RLHF_TEST_DEVICE=cuda $(BIN)/python -m pytest -n 0 -v tests/gpu

mutants: $(READY)  ## plant faults in PPO and the other methods, one at a time; each must be caught by the test of its invariant (long: tests run for each)
	$(BIN)/python tests/mutants.py

soak: $(READY)  ## kill the chain at random 30 times, in every stage, by one process and two; it must end in the same bits (ten minutes)
	$(BIN)/python tests/soak.py

bench: $(READY)  ## PPO against trl 1.12.0's, in an environment of its own: benchmarks/RESULTS.md; scoring: REWARD.md
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/reward.py

docs: $(READY)  ## the pages as a site: build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs
	@echo 'The pages: build/docs/index.html'

check: $(READY)  ## judge, change nothing; with a network, known weaknesses too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if $(BIN)/python -c '$(ANSWERS)' 2>/dev/null; then $(MAKE) --no-print-directory audit; else echo 'audit: left out, as PyPI does not answer, or a mirror does'; fi

audit: $(AUDIT)  ## known weaknesses of the pinned packages; asks an index of them, and fails where it does not answer
	$(AUDIT) --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

$(AUDIT):
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

fix: $(READY)  ## rewrite
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pins of constraints.txt are what is tested; pyproject.toml holds the ranges that are allowed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "llm-rlhf needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
	@echo 'The commands are in $(BIN): $(BIN)/llm-rlhf --help, or plainly llm-rlhf after: . $(BIN)/activate'

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
