# The only list of commands. Each target installs what it needs in a virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The files from which the installed package is made. If one of them changes, make installs the package again.
SOURCES := pyproject.toml CMakeLists.txt README.md $(shell find src csrc include cmake -type f -not -name '*.pyc' 2>/dev/null)
# Two processes share the tests.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
C_FILES := $(shell find csrc include src tests bench -name '*.[ch]' -o -name '*.inc' -o -name '*.def')

.PHONY: help generate amalgamation test-amalgamation demo test cross faults test-embed test-torch test-thinc test-pythons test-nogil test-tsan mutants lint format docs check-docs fuzz bench bench-torch bench-thinc bench-scipy bench-precision bench-deepspeed clean check-dist

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

generate:  ## write what follows from the table of rules: csrc/rules.def
	$(PYTHON) tools/generate.py

amalgamation:  ## write the C core as two files and a zip archive of them: out/amalgamation
	$(PYTHON) tools/amalgamate.py

demo: $(VENV)/demo.installed  ## train on real data, compare with NumPy, draw out/*.png
	$(BIN)/python -m gdm demo --out out

test: $(VENV)/test.installed  ## run the tests; those of other languages and of PyTorch have targets of their own
	$(PYTEST) --ignore=tests/test_embed.py

# Some of it needs strace, root, or much memory; without them it says what it has not tested.
FAULTS := $(addprefix tests/test_,memory_limits.py checkpoint_faults.py c_stress.py endurance.py large.py)
faults: $(VENV)/test-torch.installed  ## let memory, disks and threads fail at every call; print how often
	GDM_FAULTS=1 $(PYTEST) $(FAULTS)

# Building the C libraries of all systems takes minutes, the first time. ONLY="wasm or musl" chooses platforms.
cross: $(VENV)/cross.installed  ## build the C core for other systems; run it under Wine, QEMU and in WebAssembly
	GDM_CROSS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests/test_cross.py -k "$(ONLY)"

# Runs twice: with gdm installed as users install it, and in editable mode, as developers install it.
test-embed: $(VENV)/embed.installed .venvs/editable.installed  ## build and run the examples in other languages
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/test_embed.py
	PATH="$(CURDIR)/.venvs/editable/bin:$$PATH" .venvs/editable/bin/python -m pytest tests/test_embed.py

test-torch: $(VENV)/test-torch.installed  ## run the tests that need PyTorch
	$(PYTEST) tests/test_torch*.py tests/test_distributed_example.py tests/test_docs.py

# Runs twice: with the thinc that spaCy needs, and with thinc 9.
test-thinc: $(VENV)/test-thinc.installed .venvs/thinc-9.installed  ## run the tests that need thinc and spaCy
	$(BIN)/python -m pytest tests/test_thinc.py tests/test_docs.py
	PYTHONPATH=.venvs/thinc-9 $(BIN)/python -m pytest tests/test_thinc.py

mutants: $(VENV)/mutants.installed  ## change the code at some 300 places, one at a time: does a test fail? Takes an hour or two
	$(BIN)/python tools/mutants $(MUTANTS)

check-dist: $(VENV)/dist.installed  ## build source distribution and wheels, and check them; write out/dist
	.ci/check-dist

test-pythons:  ## run the tests on CPython 3.11 to 3.14, and on 3.14 without the GIL, if they are installed
	.ci/test-pythons

test-amalgamation: $(VENV)/test.installed  ## test the two files with more compilers, machines and sanitizers, for some minutes
	GDM_EVERY_BUILD=1 $(PYTEST) tests/test_amalgamation.py

# Each test runs in one thread, and then in four at once; those that cannot are in tests/thread_unsafe.py, and run in one.
PYTHON_NOGIL ?= python3.14t
NOGIL := .venvs/nogil
test-nogil:  ## run each test in four threads at once on a Python without the GIL, if there is one: PYTHON_NOGIL
	@if ! $(PYTHON_NOGIL) -c 'import sys; sys.exit(sys._is_gil_enabled())' 2>/dev/null; then \
		echo "NOT TESTED: Python without the GIL; there is no $(PYTHON_NOGIL). Set PYTHON_NOGIL"; \
	else \
		$(MAKE) $(NOGIL)/test-nogil.installed PYTHON=$(PYTHON_NOGIL) VENV=$(NOGIL) && \
		$(NOGIL)/bin/python -m pytest -q -n 2 --dist worksteal && \
		$(NOGIL)/bin/python -m pytest -q --parallel-threads=4; \
	fi

# ThreadSanitizer sees only what was compiled for it: the compiled module here, and a Python without the GIL that was configured
# with --with-thread-sanitizer, and with Clang. PYTHON_NOGIL, of the same version, builds the module: under the sanitizer pip
# would take long. First comes a program with a race, which must be reported.
PYTHON_TSAN ?= python3.14t-tsan
TSAN := $(CURDIR)/.venvs/tsan
TSAN_REPORTS := $(CURDIR)/out/tsan
TSAN_RUN := PYTHONPATH=$(TSAN) TSAN_OPTIONS="exitcode=0 log_path=$(TSAN_REPORTS)/report suppressions=$(CURDIR)/tests/tsan_suppressions.txt" $(PYTHON_TSAN)
TSAN_TESTS := $(patsubst %,tests/test_%.py,free_threading concurrency array_update groups options schedules_in_steps)
test-tsan:  ## look for races in the compiled module with ThreadSanitizer: PYTHON_TSAN, PYTHON_NOGIL
	@if ! $(PYTHON_TSAN) -c 'import sys, sysconfig; sys.exit("-fsanitize=thread" not in sysconfig.get_config_var("CFLAGS"))' \
			2>/dev/null; then \
		echo "NOT TESTED: the compiled module under ThreadSanitizer; there is no $(PYTHON_TSAN). Set PYTHON_TSAN"; \
	else \
		$(MAKE) $(TSAN).installed && rm -rf $(TSAN_REPORTS) && mkdir -p $(TSAN_REPORTS) && \
		$(TSAN_RUN) tests/tsan_control.py && \
		{ grep -q '#0 .*_core' $(TSAN_REPORTS)/report.* || { echo "ThreadSanitizer does not see races in gdm"; exit 1; }; } && \
		rm $(TSAN_REPORTS)/report.* && \
		$(TSAN_RUN) -m pytest -q -p no:cacheprovider --parallel-threads=4 $(TSAN_TESTS) && \
		if ls $(TSAN_REPORTS)/report.* >/dev/null 2>&1; then cat $(TSAN_REPORTS)/report.*; exit 1; fi; \
	fi

RUNS ?= 200000
fuzz: $(VENV)/fuzz.installed  ## feed the C core and the readers of states what a fuzzer makes; RUNS=... inputs
	$(BIN)/python tests/fuzz/run.py --runs $(RUNS)

lint: $(VENV)/lint.installed  ## check formatting, lint, types, stubs; change nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest gdm._core gdm.bench._limit gdm.schedules._formulas
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --quiet --offline .github
	$(BIN)/repo-review .
	@if command -v actionlint >/dev/null; then actionlint; else echo "NOT CHECKED: workflows by actionlint, which is not here"; fi

format: $(VENV)/lint.installed  ## format everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_FILES)

docs: $(VENV)/docs.installed  ## build the site from docs/ and the docstrings into out/docs
	rm -rf docs/api/generated
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs out/docs

check-docs: $(VENV)/check-docs.installed docs  ## visit every page of the site with Chromium; draw out/site/*.png
	$(BIN)/python docs/check_site.py out/docs --screenshots out/site

bench: $(VENV)/bench.installed  ## measure gdm and every peer, on a quiet machine; write out/bench.*
	@mkdir -p out
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-quiet --benchmark-json=out/pytest-benchmark.json

bench-torch: $(VENV)/bench-torch.installed  ## measure gdm.torch against torch.optim; write out/bench-torch.json
	$(BIN)/python bench/compare_torch.py --sweep

bench-thinc: $(VENV)/test-thinc.installed  ## measure gdm.thinc against thinc's optimizers in a training of spaCy's
	$(BIN)/python bench/compare_thinc.py

bench-scipy: $(VENV)/bench-scipy.installed  ## run gdm.scipy on the problems of S2MPJ, for some hours; write out/bench-scipy.json
	$(BIN)/python bench/compare_scipy.py

bench-precision: $(VENV)/bench-torch.installed  ## measure narrow storage, clipping and averages; write out/bench-precision.json
	$(BIN)/python bench/compare_precision.py

# DeepSpeed compiles its optimizer when it is used first, for a minute. It needs ninja on the path.
bench-deepspeed: $(VENV)/bench-deepspeed.installed  ## measure gdm.torch against DeepSpeedCPUAdam
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python bench/compare_torch.py --deepspeed --sweep --methods AdamW --threads 1

clean:  ## remove everything that is generated
	rm -rf $(VENV) .venvs build dist out docs/api/generated

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gdm needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# One stamp file for each extra: to install an extra again is quick if only the sources have changed.
$(VENV)/%.installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[$*]'
	touch $@

# thinc 9 and what it needs, which is put before the packages of the virtual environment.
.venvs/thinc-9.installed: pyproject.toml | $(VENV)/test-thinc.installed
	rm -rf .venvs/thinc-9
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --target .venvs/thinc-9 'thinc==9.1.1'
	touch $@

# In a build folder of its own: flags that CMake has found once, it keeps.
$(TSAN).installed: $(SOURCES)
	rm -rf $(TSAN) build/tsan
	$(MAKE) $(NOGIL)/bin/python PYTHON=$(PYTHON_NOGIL) VENV=$(NOGIL)
	CC=clang CFLAGS="-fsanitize=thread -g" $(NOGIL)/bin/python -m pip install --quiet --disable-pip-version-check \
		--config-settings build-dir=build/tsan --config-settings install.strip=false --target $(TSAN) '.[test-nogil]'
	touch $@

.venvs/editable.installed: $(SOURCES)
	$(PYTHON) -m venv .venvs/editable
	.venvs/editable/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[embed]'
	touch $@
