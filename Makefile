# Every target creates and fills .venv by itself. It needs Python >= 3.10, make and gcc.
SHELL  := bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The demo model in F16, where the sources are complete. Q4_0 rounds activations to 8 bits, so that a
# story can depend on the last bit of a sum (docs/results.md).
MODEL  ?= $(wildcard models/demo-f16.gguf)
PROMPT ?= Once upon a time
N      ?= 400
MODELS ?= 15m 110m 1b 7b4l
FUZZ_SECONDS ?= 300
SHAPES ?= 3
LONG_SHAPES ?= 30
DIGESTS := results/digests.json
# The same as [build-system] in pyproject.toml; a test compares the two.
BUILD_REQUIRES := "setuptools>=77" "Cython>=3.0,<4"
SOURCES := engine tests bench models release docs results licenses Makefile Dockerfile setup.py \
    pyproject.toml $(wildcard *.md)
SANITIZED := $(CURDIR)/build/sanitize
# Checks are calls, not inline code, because gcc would need minutes for each file. The undefined checks
# leave out those of every pointer, because the address checks make most of them too.
SANITIZE_FLAGS := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined \
    --param asan-instrumentation-with-call-threshold=0 -fno-sanitize=null,pointer-overflow,object-size
ARM_TESTS ?= tests/test_kernels.py tests/test_attention.py tests/cache tests/architectures/test_model.py \
    tests/architectures/test_families.py tests/runtime/test_schedules.py
SANITIZE_TESTS ?= --ignore=tests/test_packaging.py
KERNEL_SOURCES := $(shell find engine -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.def')

export MODEL PROMPT FUZZ_INPUTS
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long real-models digests fuzz check-kernels coverage sanitize test-arm \
    bench bench-compare bench-models results lint build dist wheels test-wheels compile-others clean

help:
	@echo "make demo [MODEL=file.gguf] [PROMPT='text'] [N=400]   a story, with both cache strategies"
	@echo "make test                              the test suite"
	@echo "make real-models                       two small models of others, for the tests marked real"
	@echo "make test-long [LONG_SHAPES=30]        the suite, kernels on many shapes, digests of logits"
	@echo "make digests                           logits of every type and instruction set, bit for bit"
	@echo "make check-kernels [SHAPES=3]          each kernel at each level on random shapes, and its speed"
	@echo "make fuzz [FUZZ_SECONDS=300] [FUZZ_INPUTS=request]     changed files, texts and requests, until one does harm"
	@echo "make sanitize [LARIAT_CASES=1]         cases of each test, with checks of addresses and undefined behaviour"
	@echo "make test-arm [LARIAT_CASES=1]         compiles for aarch64; cases of kernel and model tests under qemu-user"
	@echo "make coverage                          the tests, and the lines of engine/ that they run"
	@echo "make bench                             the benchmarks, saved in .benchmarks"
	@echo "make bench-compare                     the benchmarks beside the last saved run"
	@echo "make bench-models [MODELS='110m 7b']   synthetic models for lariat bench, in .bench-models"
	@echo "make results                           docs/results.md from the figures in results/"
	@echo "make lint                              ruff, mypy, cython-lint, hadolint"
	@echo "make build                             compiles the kernels in place"
	@echo "make dist                              wheel and source distribution in dist/"
	@echo "make wheels [WHEELS=aarch64]           wheels for Linux that need no compiler, in dist/"
	@echo "make test-wheels                       each in an empty environment, and on emulated processors"
	@echo "make compile-others                    compiles for macOS and musl, by Zig's clang"
	@echo "make clean                             removes all of it, .venv too"

# The environment. It is filled again when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "lariat needs Python 3.10 or newer, and $(PYTHON) is older: name another one with make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv python3-dev)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(BUILD_REQUIRES)
	LARIAT_SKIP_KERNELS=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

# The compiled modules. They are compiled again when their sources change.
$(VENV)/.built: $(VENV)/.installed setup.py $(KERNEL_SOURCES) | build/package/lariat
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

build: $(VENV)/.built

# Both streams go through one pipe, so that the figures cannot overtake the end of the story.
demo: $(VENV)/.built
	@set -euo pipefail; for cache in roped raw; do \
	    echo "--- $$cache cache"; \
	    $(BIN)/lariat generate $${MODEL:+-m "$$MODEL"} -p "$$PROMPT" -n $(N) --temp 0 --cache $$cache -ctk f32 -ctv f32 2>&1 \
	        | tee $(VENV)/demo-$$cache.log; \
	    grep -v '^lariat: ' $(VENV)/demo-$$cache.log > $(VENV)/demo-$$cache.txt; \
	done; \
	if cmp -s $(VENV)/demo-roped.txt $(VENV)/demo-raw.txt; \
	then echo "--- both caches wrote the same text"; \
	else echo "--- the texts part at some point; docs/results.md says when that is no fault"; fi

test: $(VENV)/.built
	$(BIN)/python -m pytest

# It needs a network, the first time. Without the files the tests that are marked real are skipped.
real-models: $(VENV)/.installed
	$(BIN)/python -m models.real

# Everything that checks results. It takes much longer than `make test`, so .ci/run leaves it out.
test-long: export LARIAT_STRIKES := 20000
test-long: export LARIAT_SCHEMAS := 200
test-long: export LARIAT_KILLS := 20
test-long: export LARIAT_SPECULATIONS := 500
test-long: test digests
	$(BIN)/python -m bench.check_kernels --shapes $(LONG_SHAPES)

# A change that computes something differently on purpose writes the file anew and says why.
digests: $(VENV)/.built
	$(BIN)/python -m bench.digests --check $(DIGESTS)

coverage: $(VENV)/.built
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q
	$(BIN)/python -m coverage combine -q
	@$(BIN)/python -m coverage report --fail-under=95

test-arm: $(VENV)/.installed
	LARIAT_CASES=$${LARIAT_CASES:-1} .ci/test-arm $(BIN)/python $(ARM_TESTS)

# A copy of the sources is compiled with checks and runs the suite. The build in place stays as it is.
# libstdc++ is loaded first, because the checks must know of it before sentencepiece throws exceptions.
# Leaks are not looked for: Python and the libraries keep memory until the process ends.
sanitize: $(VENV)/.installed
	@mkdir -p $(SANITIZED)
	tar -c --exclude='*.so' --exclude=__pycache__ $(SOURCES) | tar -x -C $(SANITIZED)
	cd $(SANITIZED) && LARIAT_CFLAGS="$(SANITIZE_FLAGS)" $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) libstdc++.so.6" PYTHONPATH=$(SANITIZED)/build/package:$(SANITIZED) \
	    PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 $(CURDIR)/$(BIN)/python -m pytest -q -p tests.sanitize $(SANITIZE_TESTS)

check-kernels: $(VENV)/.built
	$(BIN)/python -m bench.check_kernels --shapes $(SHAPES)

# The corpus stays, and the next run goes on from it. FUZZ_INPUTS: types of inputs, all without it. An input that does harm stays in .fuzz, and
# `make fuzz` ends with an error.
fuzz: $(VENV)/.built $(VENV)/.fuzz
	@mkdir -p .fuzz/corpus
	$(BIN)/python -m tests.fuzz -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/ -print_final_stats=1 .fuzz/corpus

$(VENV)/.fuzz: $(VENV)/.installed
	LARIAT_SKIP_KERNELS=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[fuzz]'
	@touch $@

# Two cores need some two minutes. The last table has correctness and rates beside each time.
bench: $(VENV)/.built
	$(BIN)/python -m pytest bench/micro -q --benchmark-quiet --benchmark-autosave

bench-compare: $(VENV)/.built
	@compgen -G '.benchmarks/*/*.json' >/dev/null || { echo "There is no saved run to compare with yet: run make bench first." >&2; exit 2; }
	$(BIN)/python -m pytest bench/micro -q --benchmark-compare --benchmark-group-by=fullname \
	    --benchmark-columns=median,iqr,rounds --benchmark-sort=name

bench-models: $(VENV)/.installed
	$(BIN)/python -m bench.synthetic $(MODELS)

results: $(VENV)/.installed
	$(BIN)/python -m bench.results render

# Python, mypy and Cython find the package through this link.
build/package/lariat:
	@mkdir -p $(@D)
	ln -sfn ../../engine $@

lint: $(VENV)/.installed build/package/lariat
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# It looks for pycodestyle on the PATH.
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint engine
	$(BIN)/hadolint Dockerfile

dist: $(VENV)/.built
	$(BIN)/python -m build --no-isolation --outdir dist .

# Wheels that need no compiler, for two architectures, with the Pythons at hand (docs/install.md).
wheels: $(VENV)/.release build/package/lariat
	$(BIN)/python -m release.wheels $(WHEELS)

test-wheels: $(VENV)/.built $(VENV)/.release
	$(BIN)/python -m release.check

compile-others: $(VENV)/.release build/package/lariat
	$(BIN)/python -m release.others

$(VENV)/.release: $(VENV)/.installed
	LARIAT_SKIP_KERNELS=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[release]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info engine/*.so .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis .fuzz
	find engine tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
