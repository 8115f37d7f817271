# make demo   assemble LLaVA-1.5 from blocks, train it small, evaluate it, write demo/report.html
# make test   lint, type check, and the whole test suite
# make test-oldest    the core of the suite with the oldest versions that pyproject.toml allows
# make test-exchange  folders that the oldest versions write are read by the newest, and the other way round
# make lint   ruff, its format and mypy
# make format ruff's fixes and its format, everywhere
# make docs   build the site into site/, strictly
# make bench  time the ops with pytest-benchmark; K="splice and fwd" chooses cases, ARGS are handed on
# make parity run the tests that compare blocks with their twins, write docs/parity.md from what they measured
# make gpu    prove and time the kernels on this machine's GPU; again until nothing is missing. ARGS are handed on
# make clean  remove what they leave behind
#
# They install into their own virtual environments. Variables:
#   PYTHON  the interpreter the environment is made with (3.10 or newer)
#   VENV    where the environment lies
#   TORCH   what pip installs for torch, options included, such as a wheel without CUDA:
#           make test TORCH=/path/to/torch-2.13.0+cpu.whl
#   OLDEST_PYTHON, OLDEST_VENV, OLDEST_TORCH  the same for the oldest versions: Python 3.10 to 3.12, and the oldest torch or a wheel of it
#   JOBS    test processes
#   DEMO    where the demo writes
#   LMMBLOCKS_CUDA_ARCHS, LMMBLOCKS_REQUIRE_CUDA, ...  how the CUDA kernels are built: csrc/README.md
# make demo installs without the CUDA kernels, which it doesn't use: nvcc takes a minute or two. make test builds them where nvcc is found.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch
JOBS   ?= 2
DEMO   ?= demo
OLDEST_PYTHON ?= $(PYTHON)
OLDEST_VENV  ?= .venv-oldest
OLDEST_TORCH ?= torch

bin := $(VENV)/bin
# A stamp is valid for one checkout and one choice of torch.
key   := $(shell printf '%s' '$(CURDIR) $(TORCH)' | cksum | cut -d ' ' -f 1)
stamp := $(VENV)/.installed-$(key)
setup_files := pyproject.toml setup.py
kernels     := $(shell find csrc -path csrc/simt -prune -o -type f ! -name '*.pyc' ! -name '*.md' -print)

# What people do and what other packages have a say in: README's Python, building, loading and saving, chat and tokenizers, pictures, answers,
# training with its files, versions. Without kernels, and without what is computed in torch alone.
train_files := adapters checkpoint loader loop order resume sampler samples schedule step train_command
oldest_tests := tests/packaging/oldest_installed.py tests/packaging/test_versions.py tests/packaging/test_light_import.py \
  tests/packaging/test_optional_packages.py tests/test_readme.py tests/test_build.py tests/test_lmm.py tests/test_config.py tests/test_registry.py \
  tests/chat tests/data tests/eval tests/generate tests/images $(train_files:%=tests/train/test_%.py) tests/weights/test_inspect.py \
  tests/weights/test_original_layouts.py tests/weights/test_save_load.py tests/weights/test_sources.py tests/weights/test_weight_files.py
exchange  := tests/packaging/exchanged_folders.py
exchanged := $(OLDEST_VENV)/exchanged

.PHONY: help demo test test-oldest test-exchange bench parity gpu lint format docs clean
.DELETE_ON_ERROR:

parity_tests = $(shell grep -rl --include='test_*.py' record_parity tests | sort) tests/projectors
measured     = $(abspath $(VENV))/parity.jsonl

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: $(stamp)-demo
	$(bin)/python -m examples.llava15.demo --out $(DEMO)

test: $(stamp)-dev lint
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-oldest: $(OLDEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(oldest_tests)

test-exchange: $(stamp)-dev $(OLDEST_VENV)/.installed
	rm -rf $(exchanged)
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python $(exchange) $(exchanged)/by-oldest
	OMP_NUM_THREADS=1 $(bin)/python $(exchange) $(exchanged)/by-newest
	OMP_NUM_THREADS=1 LMMBLOCKS_EXCHANGED=$(exchanged)/by-newest $(OLDEST_VENV)/bin/python -m pytest -q $(exchange)
	OMP_NUM_THREADS=1 LMMBLOCKS_EXCHANGED=$(exchanged)/by-oldest $(bin)/python -m pytest -q $(exchange)

# lmmblocks comes first, without what it needs: its own metadata says what is oldest.
$(OLDEST_VENV)/.installed: export LMMBLOCKS_SKIP_CUDA = 1
$(OLDEST_VENV)/.installed: export LMMBLOCKS_REQUIRE_CUDA =
$(OLDEST_VENV)/.installed: $(setup_files)
	@$(OLDEST_PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || { \
	  echo "error: the oldest versions are not made for $$($(OLDEST_PYTHON) -V 2>&1): name an older one: make OLDEST_PYTHON=python3.12" >&2; exit 1; }
	$(MAKE) --no-print-directory PYTHON=$(OLDEST_PYTHON) VENV=$(OLDEST_VENV) $(OLDEST_VENV)/bin/python
	$(OLDEST_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	$(OLDEST_VENV)/bin/python -m lmmblocks.spec.versions > $(OLDEST_VENV)/oldest.txt
	$(OLDEST_VENV)/bin/python -m pip install --quiet --constraint $(OLDEST_VENV)/oldest.txt $(OLDEST_TORCH) --editable '.[test]'
	touch $@

bench: $(stamp)-dev
	$(bin)/python -m pytest benchmarks --benchmark-only -q $(if $(K),-k '$(K)') $(ARGS)

# What was measured before is no part of the page; tests run one after another, as they all write into one file.
parity: $(stamp)-dev
	rm -f $(measured)
	OMP_NUM_THREADS=1 LMMBLOCKS_PARITY=$(measured) $(bin)/python -m pytest -q $(parity_tests)
	$(bin)/python docs/write_parity.py $(measured)

gpu: $(stamp)-dev
	$(bin)/python -m benchmarks.gpu --out .gpu/out $(ARGS)

docs: $(stamp)-docs
	$(bin)/python -m zensical build --clean --strict
	@echo "open $(CURDIR)/site/index.html"

# The pages are made from sources alone: neither torch nor lmmblocks is installed for them.
$(stamp)-docs: pyproject.toml | $(bin)/python
	@$(bin)/python -c 'import tomllib' 2>/dev/null || { echo "error: make docs needs Python 3.11 or newer: make docs PYTHON=python3.12 VENV=.venv-docs" >&2; exit 1; }
	$(bin)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(VENV)/docs.txt
	$(bin)/python -m pip install --quiet --requirement $(VENV)/docs.txt
	touch $@

format: $(stamp)-dev
	$(bin)/python -m ruff check --fix .
	$(bin)/python -m ruff format .

lint: $(stamp)-dev
	$(bin)/python -m ruff check .
	$(bin)/python -m ruff format --check --quiet .
	$(bin)/python -m mypy

$(stamp)-demo: export LMMBLOCKS_SKIP_CUDA = 1
$(stamp)-demo: export LMMBLOCKS_REQUIRE_CUDA =
$(stamp)-demo: $(setup_files) | $(bin)/python
	$(call install,demo)
	touch $@

$(stamp)-dev: $(setup_files) $(kernels) | $(bin)/python
	$(call install,dev)
	touch $(stamp)-demo $@

# Editable: a second checkout that shares VENV invalidates the first one's stamps.
define install
	find $(VENV) -maxdepth 1 -name '.installed-*' ! -name '.installed-$(key)-*' -delete
	$(bin)/python -m pip install --quiet $(TORCH)
	$(bin)/python -m pip install --quiet --editable '.[$(1)]'
endef

$(bin)/python:
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' does not run: install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: lmmblocks needs Python >= 3.10, '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist site .cache *.egg-info lmmblocks/_C.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	if [ -f "$(OLDEST_VENV)/pyvenv.cfg" ]; then rm -rf "$(OLDEST_VENV)"; fi
	if [ -f "$(DEMO)/results.json" ]; then rm -rf "$(DEMO)"; fi
	find lmmblocks kernels examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
