# `make run` and `make test` do all of their own set-up on a fresh Debian machine.
.DEFAULT_GOAL := help
PORT ?= 8080
PY := .venv/bin/python

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

run: ## install, then start tailrace with an embedded Redis on 127.0.0.1:8080 (PORT=9000 for another port)
	@scripts/setup run
	@exec .venv/bin/tailrace dev --port $(PORT)

test: ## install what the tests need, then run everything (ARGS="-k word" for some of it)
	@scripts/ready
	@scripts/test $(ARGS)

check: ## format, lint, types and the fast tests
	@scripts/setup dev
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@$(PY) -m pytest -q -n 2 tests/core tests/conformance $(wildcard tests/test_*.py)

bench: ## the benchmarks; RESULTS are printed with their targets
	@scripts/ready
	@$(PY) -m bench

chaos: ## break everything under load (SEED=7 MINUTES=10 DELIVERIES=10000000 FAULTS=redis_kill,latency TOPOLOGY=sentinel|cluster REPORT=folder)
	@scripts/ready
	@$(PY) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DELIVERIES),--deliveries $(DELIVERIES)) $(if $(TOPOLOGY),--topology $(TOPOLOGY)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(REPORT),--report $(REPORT))

soak: ## a steady load for hours, and what may not grow (HOURS=1 SEED=1 REPORT=file)
	@scripts/ready
	@$(PY) -m tests.chaos.soak $(if $(HOURS),--hours $(HOURS)) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report $(REPORT))

fuzz: ## every fuzz target, guided by coverage where atheris has a wheel (SECONDS=60 TARGETS="push codec")
	@scripts/setup dev
	@scripts/fuzz $(TARGETS) --seconds $(or $(SECONDS),60)

settings: ## write docs/settings.md again
	@$(PY) -c 'from tailrace.config import settings_table; print("# Settings\n\nEnvironment, `tailrace.toml`, defaults, in this order. This table is made from the code: `make settings`.\n\n" + settings_table(), end="")' >docs/settings.md

lock: ## write the lock files again
	@scripts/lock

audit: ## known defects of what is installed, by pip-audit where it is on PATH and can ask its service
	@scripts/audit

clean: ## remove what the other commands made (not the data in .tailrace)
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/bin

.PHONY: help run test check bench chaos soak fuzz settings lock audit clean
