# Two commands on a fresh machine: make sweep, make test. `make` alone explains the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PORT ?= 5000
# Other results than those in outputs/: RECORD is an output_dir (or a record's file or address),
# TABLE a results file; OUT is where to write.
FROM = $(if $(TABLE),--table "$$TABLE") $(if $(RECORD),--uri "$$RECORD") $(if $(OUT),--out "$$OUT")
export RECORD TABLE OUT

.DEFAULT_GOAL := help
.PHONY: help setup sweep figures tables claims report ui test lint format bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

# Byte code is written for what is imported, when it is: compiling all of it takes as long as the
# rest of the installation.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "installing into $(VENV): about 2 GB on a CPU, a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q \
	  $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## make .venv with all that is needed

sweep: $(READY) ## the default sweep: LoRA and QLoRA, r = 1 to 512, a small real model, real reviews
	$(BIN)/python sweep.py method=base
	$(BIN)/python sweep.py -m method=lora,qlora lora.r=1,2,4,...,512

figures: $(READY) ## record -> results/trials.parquet -> results/figures (of other runs: RECORD=their output_dir)
	$(BIN)/python -m analysis figures $(FROM)

tables: $(READY) ## the paper's Tables 1 to 4 beside our own accounting -> results/tables
	$(BIN)/python -m analysis tables $(FROM)

claims: $(READY) ## the paper's claims judged: confirmed, refuted or undecided -> results/claims
	$(BIN)/python -m analysis claims $(FROM)

report: $(READY) ## all of it as one page -> results/report (from a results file: TABLE=docs/runs/x.parquet)
	$(BIN)/python -m analysis report $(FROM)

ui: $(READY) ## MLflow on localhost, to compare runs (RECORD= too)
	@exec $(BIN)/python -m lorasweep.ui "$${RECORD:-outputs}" $(PORT)

test: $(READY) ## the test-suite (real command lines on tiny models)
	$(BIN)/python -m pytest

lint: $(READY) ## ruff, mypy, and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src analysis sweep.py
	PYTHONPATH=src:. $(BIN)/lint-imports

format: $(READY) ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## where the seconds go at both ends of the default sweep (a record of its own)
	$(BIN)/python sweep.py -m method=lora,qlora lora.r=1,512 output_dir=$$(mktemp -d)

clean: ## remove the environment and what was computed; the record in outputs/ stays
	rm -rf $(VENV) results .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
