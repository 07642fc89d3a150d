# Every target makes its own environment on first use: .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Environments of library backends, each named as its extra, and what else is tested there (ray has no pins to fear).
BACKENDS := bnb gptq llmcompressor
APART := $(BACKENDS) bench
BESIDE_bnb := hqq compressed-tensors ray torchao

.PHONY: install demo test test-slow test-backends $(BACKENDS:%=test-%) lint bench clean

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/mote-quant demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-backends: $(BACKENDS:%=test-%)

$(BACKENDS:%=test-%): test-%: $(VENV)-%/.installed
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python -m pytest -n 2 tests/backends

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With the peers of the extra `bench`; docs/benchmarks.md says how ggml is found.
bench: $(VENV)-bench/.installed
	OMP_NUM_THREADS=1 $(VENV)-bench/bin/python -m eval.benchmarks

# What the C++ kernels are made of.
KERNELS := hatch_build.py mote_quant/kernels/cpu/build.py $(wildcard mote_quant/kernels/cpu/src/*)

# torch first and alone: asked for by another package, pip would take the newest build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# What constraints-X.txt pins takes the place of the pin in constraints.txt.
$(APART:%=$(VENV)-%/.installed): $(VENV)-%/.installed: pyproject.toml constraints.txt constraints-%.txt $(KERNELS)
	$(PYTHON) -m venv $(VENV)-$*
	awk -F== 'NR == FNR { own[$$1] } NR == FNR || !($$1 in own)' constraints-$*.txt constraints.txt >$(VENV)-$*/pins.txt
	$(VENV)-$*/bin/python -m pip install --quiet -c $(VENV)-$*/pins.txt torch
	$(VENV)-$*/bin/python -m pip install --quiet -c $(VENV)-$*/pins.txt -e '.[$*,test]' $(BESIDE_$*)
	@touch $@

clean:
	rm -rf $(VENV) $(APART:%=$(VENV)-%) runs
