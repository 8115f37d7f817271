# make demo   assemble LLaVA-1.5 from blocks, train it small, evaluate it, write demo/report.html
# make test   lint, type check, and the whole test suite
# make clean  remove what the two leave behind
#
# Both install into their own virtual environment. Variables:
#   PYTHON  the interpreter the environment is made with (3.10 or newer)
#   VENV    where the environment lies
#   TORCH   what pip installs for torch, options included, such as a wheel without CUDA:
#           make test TORCH=/path/to/torch-2.13.0+cpu.whl
#   JOBS    test processes
#   DEMO    where the demo writes
#   LMMBLOCKS_CUDA_ARCHS, LMMBLOCKS_REQUIRE_CUDA, ...  how the CUDA kernels are built: csrc/README.md
# make demo installs without the CUDA kernels, which it doesn't use: nvcc takes a minute or two. make test builds them where nvcc is found.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch
JOBS   ?= 2
DEMO   ?= demo

bin := $(VENV)/bin
# A stamp is valid for one checkout and one choice of torch.
key   := $(shell printf '%s' '$(CURDIR) $(TORCH)' | cksum | cut -d ' ' -f 1)
stamp := $(VENV)/.installed-$(key)
setup_files := pyproject.toml setup.py
kernels     := $(shell find csrc -path csrc/simt -prune -o -type f ! -name '*.pyc' ! -name '*.md' -print)

.PHONY: help demo test lint clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: $(stamp)-demo
	$(bin)/python -m examples.llava15.demo --out $(DEMO)

test: $(stamp)-dev lint
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(stamp)-dev
	$(bin)/python -m ruff check .
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
	rm -rf build dist *.egg-info lmmblocks/_C.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	if [ -f "$(DEMO)/results.json" ]; then rm -rf "$(DEMO)"; fi
	find lmmblocks kernels examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
