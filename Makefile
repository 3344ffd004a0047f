PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CLIENTS := .venv-clients/.ready
comma := ,
space := $() $()

.PHONY: help setup demo examples bench bench-full bench-levers bench-retention bench-core test test-fast lint clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(READY)  ## virtual environment, SGLang, this package, the model (once; about 10 GB)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer wanted: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable '.[dev]'
	$(BIN)/astraea model smollm2
	touch $@

$(CLIENTS): examples/clients/requirements.txt $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-clients
	$(BIN)/uv pip install --quiet --python .venv-clients/bin/python --compile-bytecode --requirement $<
	touch $@

examples: $(CLIENTS)  ## agents in the DSL and the async layer, and seven clients that know nothing of us, on a real server
	$(BIN)/python examples/clients/run.py --out report/clients.md

demo: $(READY)  ## a fleet of tool-using agents under SGLang's default policy and under astraea
	$(BIN)/astraea demo --out demo

BENCH := $(BIN)/astraea bench --workload infercept,mixed,coding
HEADLINE := fcfs,lpm,hrrn,mlfq,continuum,progress-ttl,astraea
OTHERS := hrrn-corrected,dfs-weight,plas,infercept,fcfs:session-radix=on,oracle
FEW := fcfs,lpm,hrrn,astraea
HOST := fcfs:host=4,lpm:host=4,astraea:host=4

bench: $(READY)  ## seven policies at 0.8 and 1.3 x the knee, on SGLang's scheduler in virtual time, no GPU (25 minutes on 2 cores)
	$(BENCH) --load 0.8,1.3 --policies $(HEADLINE) --out report

FULL := $(BENCH) --out report/full
bench-full: $(READY)  ## the whole grid: loads, seeds, every baseline, host pools, mixed chunks, bursts, full size (hours; goes on where it stopped)
	$(FULL) --load 1.3,1.6 --seeds 1,2,3 --policies $(HEADLINE),oracle
	$(FULL) --load 0.8 --seeds 1,2,3 --policies $(FEW)
	$(FULL) --load 1.3 --policies $(OTHERS),unloaded,$(HOST)
	$(FULL) --load 1.3 --mixed-chunk --policies $(HEADLINE),$(OTHERS)
	$(FULL) --load 1.3 --mixed-chunk --seeds 2,3 --policies fcfs,astraea
	$(FULL) --load 1.6 --mixed-chunk --policies fcfs,astraea
	$(FULL) --load 0.5,0.8,1.0 --policies $(FEW)
	$(FULL) --load 0.8 --arrivals gamma:3 --policies $(FEW)
	$(FULL) --arrivals closed:48 --policies $(FEW)
	$(FULL) --load 1.45,1.8 --seeds 1,2,3 --policies astraea
	$(BIN)/astraea bench --workload forks,bfcl --load 0.8,1.3 --policies $(FEW) --out report/full
	$(BIN)/astraea bench --workload coding-full,mixed-full --load 1.3 --policies $(FEW) --out report/full

LEVERS := fcfs,lpm,hrrn,mlfq,astraea,astraea:admission=none,astraea:fcfs,astraea:prediction=off,astraea:prediction=declared,hints=declared,astraea:hints=declared,oracle
bench-levers: $(READY)  ## gate and order alone and together, prediction off to oracle, three seeds (40 minutes on 2 cores)
	for w in infercept mixed coding; do $(BIN)/astraea bench --workload $$w --seeds 1,2,3 --policies $(LEVERS) --out report/$$w || exit; done

RETENTIONS := $(foreach r,lru$(comma)end=keep lru adaptive infercept paper ttl preserve discard,astraea:retention=$(r))
bench-retention: $(READY)  ## ways to treat a paused program's KV, behind the same gate (40 minutes on 2 cores)
	for w in infercept mixed coding; do $(BIN)/astraea bench --workload $$w --policies fcfs$(subst $(space),,$(addprefix $(comma),$(RETENTIONS))) --out report/retention-$$w || exit; done

bench-core: $(READY)  ## what the policy itself costs, in time and memory, beside SGLang's lpm (2 minutes)
	$(BIN)/astraea bench-core --out report/core

test: $(CLIENTS)  ## everything, the real server and real clients included
	$(BIN)/python -m pytest

test-fast: $(READY)  ## what needs no server: under a minute
	$(BIN)/python -m pytest -m "not server" -n auto

lint: $(READY)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  ## remove the virtual environment and what was generated
	rm -rf .venv .venv-clients demo report build *.egg-info .pytest_cache .ruff_cache .hypothesis
