# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
PORT ?= 8188
# Processes that tests run in; each computes on one thread.
WORKERS ?= 2
# What to install of torch; the workflows name the oldest versions here.
TORCH ?= torch torchvision
# COMFYUI_FRONTEND=1.58.1 selects a version of the frontend for `make serve` and `make browser`.
FRONTEND := .hosts/.frontend$(addprefix -,$(COMFYUI_FRONTEND))
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
# The console script, not `python -m pytest`, which would put our nodes/ in front of the host's nodes.py.
PYTEST_ALL := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup

.PHONY: help venv hosts demo serve workflows lint types quick core tests check test equal browser soak gates site clean

help:
	@echo "make demo       upscale a photograph in a real, headless ComfyUI; images go to output/"
	@echo "make serve      ComfyUI with its frontend and this pack, on http://127.0.0.1:$(PORT)"
	@echo "make quick      lint, types and the fast core tests: run it before every commit"
	@echo "make test       lint, types and all tests, including those in two real ComfyUI versions"
	@echo "make core       the tests that need no ComfyUI"
	@echo "make equal      check that results are unchanged, one line per part"
	@echo "make browser    every workflow in the real frontend, in Chromium; screenshots go to output/screenshots/"
	@echo "make soak       takes an hour: thousands of damaged files, a long queue, eight clients at once"
	@echo "make gates      the registry's own tools, scanners of malware, and a story run from the registry's archive"
	@echo "make site       a website of the documents and all public names, in build/site; a dead link fails"
	@echo "make workflows  lay out the stories of workflows/api for the canvas, and run them for thumbnails"
	@echo "make clean      remove .venv and the fetched ComfyUI versions"

# --- set-up, once -----------------------------------------------------------------------------------------------------

venv: .venv/.installed

# torch is unpinned: the index offers the right version for this machine. Nothing is compiled beforehand, since a program
# imports few of these modules.
.venv/.python: pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once)"
	@$(PIP) $(TORCH) --editable '.[python]'
	@touch $@

# What checks, tests and documents need besides.
.venv/.installed: .venv/.python
	@$(PIP) --editable '.[dev]'
	@touch $@

hosts: .hosts/.prepared

.hosts/.newest: .venv/.python tests/host/comfyui.py
	@$(PY) tests/host/comfyui.py prepare --newest
	@touch $@

.hosts/.prepared: .venv/.installed tests/host/comfyui.py
	@$(PY) tests/host/comfyui.py prepare
	@touch $@

$(FRONTEND): .hosts/.newest
	@$(PY) tests/host/comfyui.py prepare --frontend
	@touch $@

# --- see it -----------------------------------------------------------------------------------------------------------

demo: .hosts/.newest
	@$(PY) tests/host/demo.py

serve: $(FRONTEND)
	@$(PY) tests/host/comfyui.py serve --port $(PORT)

workflows: .hosts/.prepared
	@$(PY) tests/host/stories.py

# --- check it ---------------------------------------------------------------------------------------------------------

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/pyright

quick: lint types
	$(PYTEST_ALL) tests/core -m "not (slow or fuzz or soak)" $(PYTEST)

core: .venv/.installed
	$(PYTEST_ALL) tests/core tests/conformance $(PYTEST)

tests: .hosts/.prepared
	$(PYTEST_ALL) $(PYTEST)

check: lint types tests

test: check

equal: .hosts/.prepared
	@OMP_NUM_THREADS=1 $(PY) -m benchmarks.equal $(EQUAL)

.venv/.browser: .venv/.installed
	@$(PIP) --editable '.[browser]'
	@touch $@

# Also part of `tests`, once this has installed Chromium; skipped otherwise.
browser: $(FRONTEND) .hosts/.prepared .venv/.browser
	$(BIN)/pytest tests/browser $(PYTEST)

# -s: latency, throughput and memory are printed, not asserted.
soak: .hosts/.prepared
	FLOWCORE_SOAK=1 $(BIN)/pytest -m "fuzz or soak" -s $(PYTEST)

.gates/.installed:
	@$(PYTHON) -m venv .gates
	@.gates/bin/python -m pip install --quiet --disable-pip-version-check 'comfy-cli>=1.23' 'comfy-test>=0.4.15' 'bandit>=1.9' 'guarddog>=3.2'
	@touch $@

gates: .gates/.installed .hosts/.prepared
	@.gates/bin/python tests/gates.py

site: .venv/.installed
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

clean:
	rm -rf .venv .hosts .gates build
