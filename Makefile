# GATE Lessons. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REPORT := reports/first
# How long PyTorch's threads (libgomp's) spin before they sleep: without a limit, training beside another busy program
# takes many times as long, since a thread that spins keeps the core from the one that it waits for.
export GOMP_SPINCOUNT ?= 100000

.DEFAULT_GOAL := help
.PHONY: help setup lab test report course evidence bench wheelhouse lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with the package and its pinned dependencies (WHEELHOUSE=DIR: without a network)

# The stamps are newer than the files that decide what is installed, so that set-up costs nothing when none has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "GATE Lessons needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python could not make $(VENV); on Debian and Ubuntu install python3-venv, then run the same command again" >&2; exit 1; }
	@$(call install,.)
	@# JupyterLab would look for updates and news at each start; the course needs no network.
	@$(BIN)/jupyter labextension disable @jupyterlab/apputils-extension:announcements 2>/dev/null
	@touch $@

$(READY)-test: $(READY) # what only the tests and benchmarks need, the peers among it
	@$(call install,.[test])
	@touch $@

define install
echo "Installing into $(VENV); the first time takes a few minutes." >&2; \
$(BIN)/pip install --quiet --disable-pip-version-check $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE)) \
	--constraint constraints.txt --editable '$(1)' || { echo "The installation failed: mend what pip's last lines name \
	(network? disk space? a wheelhouse of another kind of machine?), then run the same command again" >&2; exit 1; }
endef

lab: $(READY) ## open the course in JupyterLab
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

test: $(READY)-test lint ## run every test: units, lessons, reports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval tests notebooks/0*.ipynb

report: $(READY) ## train 12 times on the course's corpus and compare the runs in an HTML page
	$(BIN)/python -m gate_lessons report --temperature 0.05 0.15 --strategy random semi_hard hard --seed 0 1 --out $(REPORT)

course: $(READY) ## execute every lesson in place, so that the stored outputs are those of the code
	$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/0*.ipynb

evidence: $(READY)-test ## measure quality on every data set that is here, into benchmarks/evidence/
	$(BIN)/python -m benchmarks.quality

bench: $(READY)-test ## measure speed and memory against peers, into benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.speed

wheelhouse: $(READY) ## collect all wheels into wheelhouse/, for a room without a network
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir wheelhouse --constraint constraints.txt 'setuptools>=77' '.[test]'

lint: $(READY)-test ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what was built, the environment included
	rm -rf $(VENV) reports wheelhouse docs/_build .pytest_cache .ruff_cache .hypothesis *.egg-info
