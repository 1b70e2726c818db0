# Every target needs nothing before it but python3, make and a C library.
#   make run                       the demo, to its report
#   make run CORPUS=… OUT=…        your recordings
#   make dags [CORPUS=… OUT=…]     the nightly run on Apache Airflow, in a browser; without a corpus on the demo's
#   make test                      lint, types, import laws, all tests
#   make bench                     measures ours beside others, writes docs/benchmarks.md (half an hour, 4 GB more)
#   make bench ARGS='kernel --rounds 9'

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= $(if $(CORPUS),out/run,out/demo)
ARGS   ?=
AIRFLOW := $(VENV)-airflow/bin/python

.PHONY: install run airflow dags dags-soak test test-python test-dags lint bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/python -m pipeline.run $(if $(CORPUS),all --corpus '$(CORPUS)',demo) --out '$(OUT)' $(ARGS)

airflow: $(VENV)-airflow/installed

# Airflow in an environment of its own: it and TensorFlow hold each other back
$(VENV)-airflow/installed: constraints-airflow.txt
	$(PYTHON) -m venv $(VENV)-airflow
	$(AIRFLOW) -m pip install --quiet --disable-pip-version-check --constraint constraints-airflow.txt \
	    apache-airflow pytest pytest-timeout
	touch $@

dags: install airflow
	$(AIRFLOW) dags/serve.py --python $(BIN)/python --out '$(if $(filter $(OUT),out/demo),out/dags,$(OUT))' \
	    $(if $(CORPUS),--corpus '$(CORPUS)') $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# side by side, for the tests of scheduled runs wait for the clock most of the time
test: lint airflow
	$(MAKE) --jobs 2 test-python test-dags

test-python: install
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-dags: install airflow
	$(AIRFLOW) -m pytest -c tests/dags/pytest.toml tests/dags

dags-soak: install airflow # an hour; make dags-soak ARGS=--minutes=5
	$(AIRFLOW) -m tests.dags.soak $(ARGS)

bench: $(VENV)-bench/installed
	$(VENV)-bench/bin/python -m tests.benchmarks $(ARGS)

$(VENV)-bench/installed: pyproject.toml constraints.txt constraints-bench.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --constraint constraints-bench.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-airflow .airflow out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
