# One command for each thing there is to do; all of them set up .venv first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
export PYTHONUNBUFFERED := 1

.PHONY: help setup models demo demo-fleet test test-zoo soak fuzz check format clean distclean

help:  ## show this
	@sed -n 's/^\([a-z%-]*\):.*  ## /\1\t/p' Makefile | expand -t 14

setup:  ## make .venv with a pinned vLLM (CPU), the tools and this project
	@scripts/setup

models: setup  ## make the tiny models in build/models
	@$(PYTHON) -m lab.models

demo: setup  ## real engines, one hybrid model: cold, device, memory, storage; build/demo
	@$(PYTHON) -m lab.demo

demo-fleet: setup  ## the router before three real engines, policy by policy; build/demo-fleet
	@$(PYTHON) -m lab.demo_fleet

test: setup  ## all tests, those with real engines included
	@scripts/test

test-zoo: setup  ## the full examination of every kind of model, with real engines; build/zoo
	@scripts/test tests/e2e -m zoo

soak: setup  ## half an hour of random faults, two engines, one directory; build/soak
	@$(PYTHON) -m lab.soak --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1)

fuzz: setup  ## five minutes of coverage-guided fuzzing of what reads files and messages; build/fuzz
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --no-deps -r requirements/fuzz.txt
	@$(PYTHON) -m lab.fuzz --seconds $(or $(SECONDS),300)

check: setup  ## formatting, lint, types, import layers
	@scripts/check

format: setup  ## write what `check` asks for, where a tool can
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

bench-%: setup  ## run the benchmark of that name, such as bench-ttft; build/bench
	@$(PYTHON) -m lab.bench.$(subst -,_,$*)

clean:  ## remove what was generated, but keep .venv
	rm -rf build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src lab tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf .venv
