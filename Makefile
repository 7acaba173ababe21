.PHONY: help demo test test-full check bench clean

ENGINE ?= torch
PORT ?= 8000
ASK ?= What is a hand-over?
ONCE ?=
BENCH ?=

# One thread a test process: instances of a test would otherwise fight for the cores.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest

help:
	@echo "make demo       start a service on this machine, ask it a question, stay up until Ctrl-C"
	@echo "                ONCE=1 stops after the answer; ENGINE=sim needs no torch; PORT=8000; ASK='...'"
	@echo "make test       what CI runs: all checks, and the tests that are not long"
	@echo "make test-full  all checks and all tests"
	@echo "make check      format, lint, types, import rules, spelling"
	@echo "make bench      run the benchmarks into docs/benchmarks.md; BENCH='name ...' picks some"
	@echo "make clean      remove .venv and all caches"

demo:
	@scripts/install.sh $(if $(filter sim,$(ENGINE)),base,engine)
	@.venv/bin/triptych up -f examples/laptop.yaml --engine $(ENGINE) --port $(PORT) --ask "$(ASK)" $(if $(ONCE),--once)

test: check
	@$(PYTEST) -m "not full"

test-full: check
	@$(PYTEST)

check:
	@scripts/install.sh dev
	@scripts/check.sh

bench:
	@scripts/install.sh dev
	@.venv/bin/python -m bench $(BENCH)

clean:
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
