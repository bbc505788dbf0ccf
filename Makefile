# Tessera's commands. `make help` lists them; each makes its environment by itself.
#
# PYTHON    the interpreter that makes the environment (3.11 or newer)
# VENV      the environment: made when absent, used as it is when it exists
# PIP_ARGS  what pip gets beside the project; by default the tested versions in constraints.txt.
#           An environment remembers what it was made with. To keep a torch that you have, give its
#           environment and
#             PIP_ARGS=              add what is missing, change only what is too old
#             PIP_ARGS=--no-deps     add nothing but Tessera itself
#           e.g.  make demo VENV=~/my-env PIP_ARGS=
#           or, for the torch of a system Python:
#             python3 -m venv --system-site-packages .venv && make demo PIP_ARGS=
# MINUTES   training time of `make demo` (10) and `make pretrained` (60), both stages together
# TEST_ARGS what pytest gets, e.g. TEST_ARGS="-k vocabulary -x"
# TEST_PROCESSES  how many run tests side by side, a file each (default: one per core, at most 8); 0: none but pytest
# MUTANTS   at most so many changes of each file for `make mutants`, drawn at random; empty: all, which takes hours
# MUTANT_ARGS  what else tests/mutants.py gets, e.g. MUTANT_ARGS="--seed 1 lm/sequences.py"

PYTHON ?= python3
VENV ?= .venv
override VENV := $(patsubst ~/%,$(HOME)/%,$(VENV))
PIP_ARGS ?= $(if $(wildcard $(VENV)/.tessera-pip-args),$(shell cat "$(VENV)/.tessera-pip-args"),-c constraints.txt)
MINUTES ?= 10
TEST_ARGS ?=
TEST_PROCESSES ?= logical --maxprocesses 8
MUTANTS ?=
MUTANT_ARGS ?=

EXTRAS := dev,tracking,evaluation,perceptual,finetune,serving,ray,signals
BIN = $(abspath $(VENV))/bin
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help environment demo pretrained test test-lowest test-latest mutants lint format types lock clean

help:
	@echo 'make demo         train both stages on drawn pictures ($(MINUTES) minutes), evaluate, sample'
	@echo 'make pretrained   train the model that comes with Tessera anew (an hour), evaluate it, put it in its place'
	@echo 'make test         run the tests (TEST_ARGS="-k name")'
	@echo 'make lint         check style; make format mends what can be mended; make types checks types'
	@echo 'make test-lowest  run the tests with the oldest versions that pyproject.toml allows, in .venv-lowest'
	@echo 'make test-latest  run the tests with the newest versions there are, in .venv-latest'
	@echo 'make mutants      change the code in small ways and see which changes the tests notice (MUTANTS=15 of a file)'
	@echo 'make lock         write uv.lock anew, after pyproject.toml or constraints.txt changed'
	@echo 'make environment  only make or update the environment'
	@echo 'make clean        remove caches and builds (neither the environment nor runs/)'
	@echo
	@echo 'PYTHON=$(PYTHON)  VENV=$(VENV)  MINUTES=$(MINUTES)  PIP_ARGS="$(PIP_ARGS)"'
	@echo 'Each target first makes the environment in VENV if need be (about 6 GB).'
	@echo 'To keep a torch that you have: make demo VENV=~/my-env PIP_ARGS=   (more in the Makefile)'

# ---------------------------------------------------------------------------------------- environment

# Syntax that any Python reads, so that an old one can still say what is wrong.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("Tessera needs Python 3.11 or newer; %s is %d.%d. Name another, with an environment of its "
             "own: make demo PYTHON=python3.12 VENV=.venv312" % ((sys.executable,) + sys.version_info[:2]))
endef
export CHECK_PYTHON

# Two marks in the environment: what was asked for, and where the project lies. The first decides by
# content, not by date, so an environment serves a fresh clone; the second links it to that clone.
environment:
	@set -e; python="$(BIN)/python"; \
	if ! "$$python" -m pip --version >/dev/null 2>&1; then \
	    command -v "$(PYTHON)" >/dev/null || \
	        { echo "No Python at '$(PYTHON)'. Name one (3.11 or newer): make demo PYTHON=python3.12" >&2; exit 1; }; \
	    "$(PYTHON)" -c "$$CHECK_PYTHON"; \
	    echo "Making the environment $(VENV)"; \
	    "$(PYTHON)" -m venv "$(VENV)"; \
	fi; \
	"$$python" -c "$$CHECK_PYTHON"; \
	wanted=$$({ cat pyproject.toml constraints.txt; echo '$(subst ','\'',$(PIP_ARGS))'; } | cksum); \
	if [ "$$(cat "$(VENV)/.tessera-requirements" 2>/dev/null)" != "$$wanted" ]; then \
	    quiet=; if "$$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; then \
	        quiet=--quiet; echo "Updating $(VENV)"; \
	    else \
	        echo "Installing Tessera's requirements into $(VENV): about 6 GB on Linux, of which 3 GB are to be"; \
	        echo "downloaded (torch with its CUDA libraries). Once, some minutes. To keep a torch that you"; \
	        echo "have, stop here; see 'make help'."; \
	    fi; \
	    "$$python" -m pip install --disable-pip-version-check $$quiet $(PIP_ARGS) -e ".[$(EXTRAS)]"; \
	    printf '%s' '$(subst ','\'',$(PIP_ARGS))' >"$(VENV)/.tessera-pip-args"; \
	    pwd >"$(VENV)/.tessera-project"; \
	    echo "$$wanted" >"$(VENV)/.tessera-requirements"; \
	elif [ "$$(cat "$(VENV)/.tessera-project" 2>/dev/null)" != "$$(pwd)" ]; then \
	    echo "Linking $(VENV) to $$(pwd)"; \
	    "$$python" -m pip install --disable-pip-version-check --quiet --no-deps -e .; \
	    pwd >"$(VENV)/.tessera-project"; \
	fi

# ----------------------------------------------------------------------------------------------- demo

# The recipe: what share of the time each stage gets, and what they are told.
TOKENIZER_MINUTES = $(shell awk -v minutes="$(MINUTES)" 'BEGIN { printf "%.2f", 0.45 * minutes }')
LM_MINUTES = $(shell awk -v minutes="$(MINUTES)" 'BEGIN { printf "%.2f", 0.55 * minutes }')
# More time sees more different pictures, up to what fits into 3 GB.
EXAMPLES = $(shell awk -v minutes="$(MINUTES)" 'BEGIN { n = 5000 * minutes; print (n < 100000) ? 100000 : (n > 300000) ? 300000 : int(n) }')
TOKENIZER_ARGS ?=
LM_ARGS ?=
# One process, spelled out so that the launcher does not remark on what it was not told.
LAUNCH := --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
PROMPTS := "a red dog" "a small blue house on the left" "a large yellow star" "a red dog left of a blue house"

# Both stages, into runs/NAME_tokenizer and runs/NAME. $(1) is the name, $(2) what stage 2 is told besides.
define TRAIN
@case "$(MINUTES)" in ''|*[!0-9.]*|*.*.*) echo "MINUTES=$(MINUTES) is no number of minutes, e.g. MINUTES=10" >&2; exit 1;; esac
@set -e; mkdir -p runs; before=$$(cat runs/.$(1)_minutes 2>/dev/null || echo "$(MINUTES)"); \
if [ "$$before" != "$(MINUTES)" ]; then \
    for run in $(1) $(1)_tokenizer; do \
        if [ -d "runs/$$run" ]; then \
            rm -rf "runs/$${run}_$${before}_minutes"; mv "runs/$$run" "runs/$${run}_$${before}_minutes"; \
            echo "Kept the run of $$before minutes as runs/$${run}_$${before}_minutes"; \
        fi; \
    done; \
fi; echo "$(MINUTES)" >runs/.$(1)_minutes
"$(BIN)/python" scripts/train_tokenizer.py --dataset sprites --max_examples $(EXAMPLES) --output_dir runs/$(1)_tokenizer \
    --max_minutes $(TOKENIZER_MINUTES) --resume $(TOKENIZER_ARGS)
"$(BIN)/accelerate" launch $(LAUNCH) scripts/train_lm.py --dataset sprites --max_examples $(EXAMPLES) \
    --image_tokenizer runs/$(1)_tokenizer --output_dir runs/$(1) --max_minutes $(LM_MINUTES) \
    --compile --resume $(2) $(LM_ARGS)
endef

# Stopped half-way, it goes on where it was. A demo of other MINUTES starts afresh; the earlier one is kept.
demo: environment
	$(call TRAIN,demo)
	"$(BIN)/python" scripts/evaluate.py --model runs/demo --dataset sprites --output runs/demo/report.json
	"$(BIN)/python" scripts/generate.py --model runs/demo $(PROMPTS) --output runs/demo/samples.png
	@echo
	@echo 'Drawn from captions:  runs/demo/samples.png'
	@echo 'Reconstructions:      runs/demo_tokenizer/samples/'
	@echo 'While it learned:     runs/demo/samples/'
	@echo 'Figures:              runs/demo/report.json'
	@echo 'Your own caption:     $(VENV)/bin/python scripts/generate.py --model runs/demo "a green fish"'

# The shipped model learns both directions: it draws, completes and describes. Finished runs stay in runs/pretrained
# and runs/pretrained_tokenizer: delete these to train once more.
# The search for guidance hears captions of seen pairs alone, and would choose 1; held-out pairs are drawn better at 1.5.
BOTH_DIRECTIONS := --formats caption_to_image=4 image_and_caption=1 --text_loss_weight 0.35 --default_guidance 1.5 \
    --default_temperature 0.3
SHIPPED := pipelines/pretrained/sprites
EXPORT = "$(BIN)/python" scripts/export_model.py --model runs/pretrained --output_dir $(SHIPPED) --dtype bfloat16 \
    --license apache-2.0 --overwrite
pretrained: MINUTES := 60
pretrained: environment
	$(call TRAIN,pretrained,$(BOTH_DIRECTIONS))
	$(EXPORT)
	"$(BIN)/python" scripts/evaluate.py --model $(SHIPPED) --dataset sprites --completion_captions 500 \
	    --output runs/pretrained/report.json
	$(EXPORT) --report runs/pretrained/report.json
	"$(BIN)/python" scripts/generate.py --model $(SHIPPED) $(PROMPTS) --output runs/pretrained/samples.png

# --------------------------------------------------------------------------------------------- checks

test: environment
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(TEST_ARGS)

lint: environment
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m uv lock --check --quiet || { echo 'uv.lock is not that of pyproject.toml: make lock' >&2; exit 1; }

format: environment
	"$(BIN)/python" -m ruff check --fix .
	"$(BIN)/python" -m ruff format .

types: environment
	"$(BIN)/python" -m mypy

# For who uses uv: the versions of constraints.txt, where Python 3.11 may have them, and what they need in turn.
lock: environment
	"$(BIN)/python" -m uv lock $(shell sed -n 's/^\([^# ]*==[^# ]*\).*/-P \1/p' constraints.txt)

# Every `name>=version` of pyproject.toml as `name==version`.
define LOWEST
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
print("\n".join(line.replace(">=", "==") for group in groups for line in group))
endef
export LOWEST

test-lowest:
	@"$(PYTHON)" -c "$$CHECK_PYTHON"
	"$(PYTHON)" -c "$$LOWEST" >.venv-lowest.txt
	$(MAKE) test VENV=.venv-lowest PIP_ARGS="-c .venv-lowest.txt"

# What is newest changes without a change here, so pip is always asked.
test-latest:
	rm -f .venv-latest/.tessera-requirements
	$(MAKE) test VENV=.venv-latest PIP_ARGS="--upgrade --upgrade-strategy eager"

# Its tool is installed here alone: nothing else needs it.
mutants: environment
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e ".[mutation]"
	"$(BIN)/python" tests/mutants.py $(if $(MUTANTS),--most $(MUTANTS)) $(MUTANT_ARGS)

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find tokenizer_image lm pipelines scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
