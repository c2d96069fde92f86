# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
PORT ?= 8188
PY := .venv/bin/python

.PHONY: help venv hosts demo serve workflows lint types tests check test browser soak gates clean

help:
	@echo "make demo    upscale a photograph in a real, headless ComfyUI; pictures go to output/"
	@echo "make serve   ComfyUI with its frontend and this pack, on http://127.0.0.1:$(PORT)"
	@echo "make workflows   lay the stories of workflows/api out for the canvas, and run them for thumbnails"
	@echo "make test    lint, types and all tests, two real hosts included"
	@echo "make browser every workflow in the real frontend, in Chromium; screenshots go to output/screenshots/"
	@echo "make soak    what takes an hour: thousands of hostile files, a long queue, eight clients at once"
	@echo "make gates   what the registry's own tools say: comfy node validate, comfy-test lint"
	@echo "make check   the same gate, named as in CONTRIBUTING"
	@echo "make clean   remove .venv and the fetched hosts"

# --- set-up, once -----------------------------------------------------------------------------------------------------

venv: .venv/.installed

# torch first and by its plain name: whatever the index offers for this machine is right.
.venv/.installed: pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check torch torchvision
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

hosts: .hosts/.prepared

.hosts/.prepared: .venv/.installed tests/host/comfyui.py
	@$(PY) tests/host/comfyui.py prepare
	@touch $@

.hosts/.frontend: .hosts/.prepared
	@$(PY) tests/host/comfyui.py prepare --frontend
	@touch $@

# --- see it -----------------------------------------------------------------------------------------------------------

demo: .hosts/.prepared
	@$(PY) tests/host/demo.py

serve: .hosts/.frontend
	@$(PY) tests/host/comfyui.py serve --port $(PORT)

workflows: .hosts/.prepared
	@$(PY) tests/host/stories.py

# --- the gate ---------------------------------------------------------------------------------------------------------

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/.installed
	.venv/bin/pyright

# The console script, not `python -m pytest`, which would put our nodes/ in front of the host's nodes.py.
tests: .hosts/.prepared
	.venv/bin/pytest $(PYTEST)

check: lint types tests

test: check

.venv/.browser: .venv/.installed
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	@touch $@

# Also a part of `tests`, where this has been run once and Chromium is there; skipped elsewhere.
browser: .hosts/.frontend .venv/.browser
	.venv/bin/pytest tests/browser $(PYTEST)

# -s: latency, throughput and memory are printed, not asserted.
soak: .hosts/.prepared
	FLOWCORE_SOAK=1 .venv/bin/pytest -m "fuzz or soak" -s $(PYTEST)

.gates/.installed:
	@$(PYTHON) -m venv .gates
	@.gates/bin/python -m pip install --quiet --disable-pip-version-check 'comfy-cli>=1.23' 'comfy-test>=0.4.15'
	@touch $@

gates: .gates/.installed
	@.gates/bin/python tests/gates.py

clean:
	rm -rf .venv .hosts .gates build
