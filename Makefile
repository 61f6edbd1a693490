# `make fit` fits the embedded data and relaxes a crystal; `make test` runs every test; `make lint` checks the text.
# Each makes .venv with the versions of constraints.txt first, and again only when one of the files below changes.

PYTHON  ?= python3
MINUTES ?= 4
WORKERS ?= 2

BIN := .venv/bin
RUN := runs/make-fit

.PHONY: fit test lint
.DELETE_ON_ERROR:

fit: .venv/installed
	$(BIN)/flashace fit examples/data/sic.extxyz --max-time $(MINUTES) --output $(RUN) --overwrite
	$(BIN)/python examples/relax.py $(RUN)/model.pt
	$(BIN)/flashace info $(RUN)/model.pt
	@echo
	@echo "Model:    $(RUN)/model.pt"
	@echo "Pictures: $(RUN)/learning_curve.png  $(RUN)/parity.png  $(RUN)/relax.png"

# One thread per worker: pytest-xdist already fills the cores.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations 10

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: setup.cfg pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("constraints.txt needs Python 3.11 or newer, this is %d.%d; say make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[test,lint]'
	touch $@
