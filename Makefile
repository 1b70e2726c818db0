# Every target needs nothing before it but python3, make and a C library.
#   make run                       the demo, to its report
#   make run CORPUS=… OUT=…        your recordings
#   make test                      lint, types, import laws, all tests

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= $(if $(CORPUS),out/run,out/demo)
ARGS   ?=

.PHONY: install run test lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/python -m pipeline.run $(if $(CORPUS),all --corpus '$(CORPUS)',demo) --out '$(OUT)' $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
