# Every word does its own set-up; `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install serve test check fix e2e sim soak bench node browser redis network

STAMP := .venv/.installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE ?= 1
ARGS ?=

help: ## list the words
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt scripts/setup
	@scripts/setup python

install: $(STAMP) ## create .venv with everything pinned

node: $(STAMP)
	@scripts/setup node

browser: $(STAMP)
	@scripts/setup browser

redis: $(STAMP)
	@scripts/setup redis

network: $(STAMP)
	@scripts/setup network

serve: $(STAMP) ## run a development server on loopback
	@holdfast dev $(ARGS)

test: $(STAMP) node browser redis network ## lint and every test but the long runs
	@$(MAKE) --no-print-directory check
	python -m pytest -q -m "not soak" --ignore=tests/sim $(ARGS)
	for mode in processes tenant; do HOLDFAST_TEST_MODE=$$mode python -m pytest -q \
		tests/e2e/test_asterql_socket.py tests/e2e/test_strata_live.py tests/e2e/test_sse.py; done

check: $(STAMP) ## ruff and mypy; edits nothing
	ruff check .
	ruff format --check .
	mypy

fix: $(STAMP) ## format, apply safe lint fixes, write the generated documents
	ruff format .
	ruff check --fix .
	python -m edge.cli.reference

e2e: $(STAMP) node browser redis network ## real processes, sockets, files and browser, in each mode
	python -m pytest -q tests/e2e -m "not soak" $(ARGS)
	HOLDFAST_TEST_MODE=processes python -m pytest -q tests/e2e -m "not soak" $(ARGS)
	HOLDFAST_TEST_MODE=tenant python -m pytest -q tests/e2e -m "not soak" $(ARGS)

sim: $(STAMP) ## simulation with many seeds
	HOLDFAST_SIM_RUNS=$${HOLDFAST_SIM_RUNS:-2000} python -m pytest -q -s tests/sim $(ARGS)

soak: $(STAMP) network ## long runs and repeated kills
	python -m pytest -q -s -m soak $(ARGS)

bench: $(STAMP) node ## workloads W1-W7: a table, and JSON under bench/results
	bench/run $(ARGS)
