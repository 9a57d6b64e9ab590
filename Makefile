# Two commands on a fresh machine: make sweep, make test. `make` alone lists all of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PORT ?= 5000
# To read other results than those in outputs/: RECORD is an output_dir (or a record's file or
# address), TABLE a results file. OUT is the folder to write to.
FROM = $(if $(TABLE),--table "$$TABLE") $(if $(RECORD),--uri "$$RECORD") $(if $(OUT),--out "$$OUT")
export RECORD TABLE OUT

.DEFAULT_GOAL := help
.PHONY: help setup sweep figures tables claims report ui test test-fast lint format bench clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

# Byte code is written for a module when it is first imported: compiling everything takes as long
# as the rest of the installation.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "installing into $(VENV): about 2 GB on a CPU, a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q \
	  $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## create .venv with everything installed

sweep: $(READY) ## run the default sweep: LoRA and QLoRA, r = 1 to 512, a small real model, real reviews
	$(BIN)/python sweep.py method=base
	$(BIN)/python sweep.py -m method=lora,qlora lora.r=1,2,4,...,512

figures: $(READY) ## draw the figures of a record into results/figures (another sweep: RECORD=its output_dir)
	$(BIN)/python -m analysis figures $(FROM)

tables: $(READY) ## write the paper's Tables 1 to 4 beside our own numbers to results/tables
	$(BIN)/python -m analysis tables $(FROM)

claims: $(READY) ## judge the paper's claims (confirmed, refuted, undecided) into results/claims
	$(BIN)/python -m analysis claims $(FROM)

report: $(READY) ## write everything as one page to results/report (a results file: TABLE=docs/runs/x.parquet)
	$(BIN)/python -m analysis report $(FROM)

ui: $(READY) ## open MLflow on localhost to compare runs (another sweep: RECORD=)
	@exec $(BIN)/python -m lorasweep.ui "$${RECORD:-outputs}" $(PORT)

test: $(READY) ## the whole test suite: also real command lines and engines on tiny models
	$(BIN)/python -m pytest

# Leaves out what runs whole command lines, trains, uses the network or is marked slow.
test-fast: $(READY) ## the unit tests: no slow, engine or end-to-end tests
	$(BIN)/python -m pytest --ignore=tests/e2e --ignore=tests/engines -m 'not slow and not network and not gpu'

lint: $(READY) ## ruff, mypy --strict, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src analysis sweep.py
	PYTHONPATH=src:. $(BIN)/lint-imports

format: $(READY) ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## time the smallest and largest ranks of the default sweep (in a temporary record)
	$(BIN)/python sweep.py -m method=lora,qlora lora.r=1,512 output_dir=$$(mktemp -d)

clean: ## remove the environment and results; the record in outputs/ is kept
	rm -rf $(VENV) results .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
