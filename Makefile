# One command each. Needs only make and a Python 3.11 or 3.12 called python3 (or PYTHON=...).
PYTHON ?= python3
VENV   := .venv/bin
ARGS   ?=

.DEFAULT_GOAL := help
REQUESTS ?= 20000
# Tests wait more than they work: two processes share two processors well, and an engine's own.
WORKERS ?= 2
# Where it is set no process keeps the bytecode of what it imports, and each start compiles it all
# again: 1.6 of the 2.5 s of processor time that a projector's takes.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup protos lock lint test chaos conservation demo bench up down status clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## fetch what is missing and build the environment (quick when there is nothing to do)
	@$(PYTHON) tools/setup.py

protos: setup ## generate Python from protos/ into gen/ (set-up does it)
	@:

lock: setup ## resolve requirements/*.in again and pin every hash
	@$(PYTHON) -m tools.lock $(ARGS)

lint: setup ## ruff, mypy --strict, buf lint, buf breaking, import rules
	@$(VENV)/python tools/lint.py $(ARGS)

test: setup ## every test, on the real parts (ARGS="-k name" for some of them)
	@$(VENV)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS)

chaos: setup ## the long form: 200 kills under 2 million events, 100,000 simulated histories
	@TOLLBOOK_KILLS=200 TOLLBOOK_KILL_EVENTS=2000000 TOLLBOOK_SEEDS=100000 $(VENV)/python -m pytest \
		tests/chaos/test_ledger_kills.py tests/chaos/test_ledger_simulation.py -s $(ARGS)

conservation: setup ## 20,000 requests of every kind under kill -9, and where each token went (REQUESTS=n)
	@TOLLBOOK_CONSERVATION_REQUESTS=$(REQUESTS) $(VENV)/python -m pytest tests/chaos/test_conservation.py -s $(ARGS)

demo: setup ## the whole path, real: requests to charges to an auditor's verdict
	@$(VENV)/tollbook demo $(ARGS)

bench: setup ## measure, beside baselines, on this machine
	@$(VENV)/python -m bench $(ARGS)

up: setup ## start the local stack: broker, database, model, services
	@$(VENV)/tollbook up $(ARGS)

down: setup ## stop all of it
	@$(VENV)/tollbook down $(ARGS)

status: setup ## what runs, where
	@$(VENV)/tollbook status $(ARGS)

clean: ## remove what was made here (environment, generated code, caches); the local stack's state is kept
	@rm -rf .venv gen .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
