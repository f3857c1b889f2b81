# Set up what is missing, build, run. `make` lists the targets; ARGS="..." is passed on.
PYTHON ?= python3
ARGS ?=
# One GPU architecture, so that a first build is quick: the visible GPU's, else 9.0. "all": the list that wheels get.
ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd';'),9.0)
CSRC = $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
ifneq ($(ARCHS),all)
export TORCH_CUDA_ARCH_LIST ?= $(ARCHS)
endif

# Each recipe is one shell line: $(call setup,PURPOSES) sets $$py, $(build) compiles for it.
setup = @set -e; py="$$($(PYTHON) .ci/environment.py $(1))"
build = "$$py" setup.py -q build_ext --inplace

.PHONY: help pretrain test test-slow test-gpu test-gpu-long sanitize bench check format build wheel
help:
	@echo "make pretrain    pretrain a BERT with BertAdam on this machine's CPU or GPU"
	@echo "make test        the CPU tests; test-slow: the long ones"
	@echo "make test-gpu    the GPU tests; test-gpu-long: many steps; sanitize: under compute-sanitizer"
	@echo "make bench       time the optimizer step"
	@echo "make check       lint, types, format and layering; format: format everything"
	@echo "make build       compile in place; wheel: a wheel for all architectures in dist/"

pretrain:
	$(call setup,pretrain); $(build); "$$py" bench/pretrain_bert.py $(ARGS)

test:
	$(call setup,test); $(build); "$$py" -m pytest -m "not gpu and not slow" $(ARGS)

test-slow:
	$(call setup,test pretrain); $(build); "$$py" -m pytest -m "slow and not gpu" $(ARGS)

test-gpu:
	$(call setup,test); $(build); "$$py" -m pytest -m "gpu and not slow" $(ARGS)

test-gpu-long:
	$(call setup,test); $(build); "$$py" -m pytest -m "gpu and slow" $(ARGS)

sanitize:
	$(call setup,test); $(build); "$$py" tests/sanitize_steps.py $(ARGS)

bench:
	$(call setup,test); $(build); "$$py" bench/bench_step.py $(ARGS)

check:
	$(call setup,check); PATH="$$(dirname "$$py"):$$PATH"; "$$py" -m ruff check .; "$$py" -m ruff format --check .; \
	"$$py" -m mypy; clang-format --dry-run -Werror $(CSRC); "$$py" -m pytest -q tests/test_layering.py

format:
	$(call setup,check); PATH="$$(dirname "$$py"):$$PATH"; "$$py" -m ruff check --fix .; "$$py" -m ruff format .; \
	clang-format -i $(CSRC)

build:
	$(call setup,test); $(build)

wheel: export TORCH_CUDA_ARCH_LIST :=
wheel:
	$(call setup,test); rm -rf build/lib.* build/bdist.*; \
	"$$py" -m pip wheel . --no-deps --no-build-isolation -w dist
