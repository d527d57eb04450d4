# Everything sets itself up: `make compare` and `make test` need only Python 3.11 or newer.
#
#   make compare   prune a shipped diffusion model by several methods and compare them
#   make test      every check that CI runs
#   make site      render and build the documentation to build/site
#
# torch comes from the package index that pip is set up with. Another build, for example the
# smaller CPU one or one for a given CUDA: make setup TORCH_INDEX=<url of that index>, as the
# installation page of PyTorch lists them.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

BIN := .venv/bin
RUN := $(BIN)/python
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: setup compare test lint types unit kb site browser clean
.DEFAULT_GOAL := compare

setup: .venv/ready

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

compare: setup
	$(RUN) -m methods compare --quick --task fashion_unet

test: lint types unit kb site browser compare

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest --numprocesses 2

kb: setup
	$(RUN) scripts/validate.py
	$(RUN) scripts/validate.py --schema check
	$(RUN) scripts/format.py --check
	$(RUN) scripts/render.py --check

site: setup
	$(RUN) scripts/render.py --site
	$(RUN) -m mkdocs build --quiet --strict

# Opens build/site in Chromium, which it installs with apt where it may.
browser: site
	$(RUN) scripts/try_site.py

clean:
	rm -rf build
