# Needs Python 3.11 or later. `make help` lists the targets.
PYTHON ?= python3
PORT ?= 8000
MINUTES ?= 10
BIN = .venv/bin
PINS = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
	--custom-compile-command 'make pins'
# uv is quicker, but does not read pip's settings: if only those name a package index, pip installs
install = $(BIN)/uv pip install --quiet --python $(BIN)/python -r $(1) 2> /dev/null \
	|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1)
# Behind the machine's own Node.js, which then need not be installed
WITH_BIN = PATH="$$PATH:$(CURDIR)/$(BIN)"
COVERED = .cache/coverage.json
# Many images set it, and uv compiles nothing: each of the 700 processes that tests start would
# compile all that it imports, Django included
unexport PYTHONDONTWRITEBYTECODE
COVER = $(if $(COVERAGE),-m slipcover --json --out $(COVERED))

.DEFAULT_GOAL := help
.PHONY: help run test coverage versions lint types pins soak bench docs site reference screenshots clean

help:  ## list the targets
	@awk -F ':.*## *' '/^[a-z]+:.*##/ {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; choose another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/bin/uv: | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-dev.txt uv

.venv/.run: requirements.txt | .venv/bin/uv
	$(call install,requirements.txt)
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	$(call install,requirements-dev.txt)
	@touch $@

.venv/.docs: requirements-docs.txt .venv/.dev
	$(call install,requirements-docs.txt)
	@touch $@

.venv/.bench: requirements-bench.txt .venv/.dev
	$(call install,requirements-bench.txt)
	@touch $@

tests/js/node_modules/.installed: tests/js/package.json requirements-node.txt | .venv/.dev
	@command -v npm > /dev/null || { $(call install,requirements-node.txt); }
	cd tests/js && $(WITH_BIN) npm install --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

run: .venv/.run  ## serve on 127.0.0.1:8000 with everything it needs (PORT=8001 for another port)
	@exec $(BIN)/python manage.py rungateway --demo --port $(PORT)

test: .venv/.dev tests/js/node_modules/.installed  ## run the whole suite (ARGS='-k name' for a part)
	@mkdir -p $(dir $(COVERED))
	$(WITH_BIN) $(BIN)/python $(COVER) -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: .venv/.dev  ## report what the last `make test COVERAGE=1` covered, by branch
	$(BIN)/python -m slipcover --merge $(COVERED) --out $(COVERED:.json=.txt) --fail-under 93

versions: .venv/.dev  ## contract and integration tests on Python 3.13, nats-server 2.11 and the newest
	.ci/versions $(ARGS)

lint: .venv/.dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev  ## mypy, strict
	$(BIN)/mypy

pins: .venv/.dev  ## rewrite requirements*.txt from requirements*.in (ARGS=--upgrade for newer)
	$(PINS) $(ARGS) requirements.in -o requirements.txt
	$(PINS) $(ARGS) requirements-dev.in -c requirements.txt -o requirements-dev.txt
	$(PINS) $(ARGS) requirements-docs.in -c requirements-dev.txt -o requirements-docs.txt
	$(PINS) $(ARGS) requirements-bench.in -c requirements-dev.txt -o requirements-bench.txt
	$(PINS) $(ARGS) requirements-node.in -o requirements-node.txt

soak: .venv/.dev  ## break everything at random for MINUTES=10 and count (ARGS='--seed 1')
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

bench: .venv/.bench  ## measure; see benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

docs: .venv/.docs  ## check that the documents are true
	$(WITH_BIN) $(BIN)/python -m pytest -n 0 tests/docs $(ARGS)

site: .venv/.docs  ## build the documentation site into build/site; a broken link fails
	$(BIN)/sphinx-build -q -W -n -E -j auto --keep-going -d .cache/sphinx docs build/site $(ARGS)

reference: .venv/.dev  ## write the generated parts of docs/reference
	DJANGO_SETTINGS_MODULE=tests.settings $(BIN)/python -m tests.docs.reference

screenshots: .venv/.dev  ## make the pictures of the documents, with headless Chromium
	DOCS_IMAGES=docs/images $(WITH_BIN) $(BIN)/python -m pytest -n 0 --timeout 300 \
		tests/acceptance/test_demo_page.py tests/acceptance/test_admin_pictures.py \
		tests/acceptance/test_admin_user_pictures.py tests/acceptance/test_tutorial.py $(ARGS)

clean:  ## remove what the other targets made, but not the data of `make run`
	rm -rf .venv .cache build dist *.egg-info staticfiles tests/js/node_modules
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
