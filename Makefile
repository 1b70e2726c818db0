# Every target installs what it needs; only Python 3.11, 3.12 or 3.13, make and a C library must be there.
#   make run                       run the demo
#   make run CORPUS=… OUT=…        run on your recordings
#   make dags [CORPUS=… OUT=…]     start the nightly run on Apache Airflow, by default on the demo's corpus
#   make test                      linter, types, import rules, tests
#   make test-long                 the tests that make test leaves out because they take minutes
#   make power-cuts CUTS=50        cut the power of a disk at random moments (root only; ten seconds per cut)
#   make chaos SEED=1 KILLS=200     kill random processes of random commands, compare the files that they leave
#   make soak MINUTES=60           one cluster for an hour, with flat memory and descriptors
#   make test-fast                 the tests that need no whole runs, clusters or training: under two minutes
#   make docs                      build the documentation into build/docs
#   make bench                     compare with other software, write docs/benchmarks.md (half an hour, 4 GB)
#   make bench ARGS='kernel --rounds 9'
#   make bench-scale               a manifest of 100 million recordings
#   make audit                     look up known vulnerabilities of the tested versions (needs the internet)

# python3 if TensorFlow supports its version, otherwise the newest supported Python that is installed
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; \
    do $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && exit; done; echo python3)
endif
VENV   := .venv
BIN    := $(VENV)/bin
AIRFLOW := $(VENV)-airflow/bin/python

# CORPUS and OUT are paths, in which quotes and $ mean themselves; ARGS is for the shell
given  = $(filter-out undefined,$(origin $(1)))
quoted = '$(subst ','\'',$(1))'
corpus = --corpus $(call quoted,$(value CORPUS))
# the folder to write to, by default $(1), or out/run for recordings of one's own
out    = --out $(call quoted,$(if $(call given,OUT),$(value OUT),$(if $(call given,CORPUS),out/run,$(1))))

.PHONY: install run airflow dags dags-soak chaos soak test test-fast test-interop test-long power-cuts test-python test-dags lint docs bench bench-scale audit clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(call quoted,$(PYTHON)) -c '$(SUPPORTED)' || { echo >&2 \
	    'Python 3.11, 3.12 or 3.13 is needed (TensorFlow supports no other): make PYTHON=path/to/python'; exit 1; }
	$(call quoted,$(PYTHON)) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/python -m pipeline.run $(if $(call given,CORPUS),all $(corpus),demo) $(call out,out/demo) $(value ARGS)

airflow: $(VENV)-airflow/installed

# a separate environment: Airflow and TensorFlow need different versions of the same packages
$(VENV)-airflow/installed: constraints-airflow.txt
	$(call quoted,$(PYTHON)) -m venv $(VENV)-airflow
	$(AIRFLOW) -m pip install --quiet --disable-pip-version-check --constraint constraints-airflow.txt \
	    apache-airflow pytest pytest-timeout
	touch $@

dags: install airflow
	$(AIRFLOW) dags/serve.py --python $(BIN)/python $(call out,out/dags) $(if $(call given,CORPUS),$(corpus)) $(value ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# at the same time: the tests of scheduled runs mostly wait for the clock
test: lint airflow
	$(MAKE) --jobs 2 test-python test-dags

test-python: install
	$(BIN)/python -m pytest -m 'not long' --numprocesses auto --dist loadfile --no-loadscope-reorder

test-fast: install
	$(BIN)/python -m pytest -m 'not slow and not long' --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-dags: install airflow
	$(AIRFLOW) -m pytest -c tests/dags/pytest.toml -m 'not long' tests/dags

# the tests that `make test` leaves out
test-long: install airflow
	$(BIN)/python -m pytest -m long $(ARGS)
	$(AIRFLOW) -m pytest -c tests/dags/pytest.toml -m long tests/dags

power-cuts: install
	POWER_CUTS=$(or $(CUTS),50) $(BIN)/python -m pytest -m long tests/test_power_cuts.py $(ARGS)

# other readers of Zarr and other training loops, in the environment of the benchmarks
test-interop: $(VENV)-bench/installed
	$(VENV)-bench/bin/python -m pytest -m long tests/interop $(ARGS)

# 200 kills take about an hour
SEED  ?= 1
KILLS ?= 200
chaos: install
	$(BIN)/python -m tests.chaos --seed $(SEED) --kills $(KILLS)

MINUTES ?= 60
soak: install
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# one hour; make dags-soak ARGS=--minutes=5
dags-soak: install airflow
	$(AIRFLOW) -m tests.dags.soak $(ARGS)

docs: install
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo 'The documentation is in build/docs/index.html'

bench: $(VENV)-bench/installed
	$(VENV)-bench/bin/python -m tests.benchmarks $(ARGS)

# manifests of so many recordings
RECORDINGS ?= 100000000
bench-scale: install
	$(BIN)/python -m tests.benchmarks.manifests $(RECORDINGS)

$(VENV)-bench/installed: pyproject.toml constraints.txt constraints-bench.txt
	$(call quoted,$(PYTHON)) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --constraint constraints-bench.txt --editable '.[bench]'
	touch $@

# every version that a file of constraints names; a package that cannot be looked up fails the audit
audit: $(VENV)-audit/installed
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off $(ARGS) \
	    $(patsubst %,--requirement %,constraints.txt constraints-airflow.txt constraints-bench.txt)

$(VENV)-audit/installed: constraints-audit.txt
	$(call quoted,$(PYTHON)) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check --requirement constraints-audit.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-airflow $(VENV)-audit .airflow out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
