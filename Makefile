# Each target makes the environment that it needs, from nothing. An environment is made anew when its requirements change.

PYTHON ?= python3
VENV := .venv
# Tests wait more than they compute: more of them at once than there are cores.
AT_ONCE := -n 3 --dist worksteal
# Flytekit 1.16 works on Python 3.13 (all but `pyflyte run`), but its metadata refuses it.
ANY_PYTHON := $(shell $(PYTHON) -c 'import sys; print("--ignore-requires-python" if sys.version_info >= (3, 13) else "")')
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # tests start hundreds of processes, and each would compile the package again

.DEFAULT_GOAL := help
.PHONY: help demo environments test lint format unit coverage oldest torch next docs bench sweeps soak clean
KILLS := 200
# The environment of `make bench`: `make bench BENCH=torch ROWS="quality slots"` measures with PyTorch, on Optuna 5. dev,
# oldest and torch lack the peers.
BENCH := bench
TORCH := torch==2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# The peers that need environments of their own. MEASURED_PEERS has them if `make bench` measures them.
PEERS := optuna-distributed ray-tune syne-tune
MEASURED_PEERS := $(if $(filter peers,$(or $(ROWS),peers)),$(PEERS))
STRIDE := 1

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

# uv installs packages some ten times as fast as pip. Where uv cannot be had, or does not reach the registry, as behind an
# index that only pip's configuration names, pip installs them.
$(VENV)/uv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@rm -rf $(VENV)/uv
	@$(PYTHON) -m venv $(VENV)/uv
	@$(VENV)/uv/bin/python -m pip install --quiet --no-compile uv || true
	@touch $@

# $(call install,NAME,WHAT): installs packages into .venv/NAME. uv and pip both get the options in WHAT.
define install
if test -x $(VENV)/uv/bin/uv && $(VENV)/uv/bin/uv pip install --python $(VENV)/$(1)/bin/python $(2); then :; else \
		echo 'pip installs what is needed. This takes a minute or two, once.'; \
		$(VENV)/$(1)/bin/python -m pip install --progress-bar off --no-compile $(ANY_PYTHON) $(2); fi
endef

# $(call environment,NAME,WHAT TO INSTALL): makes .venv/NAME.
define environment
	@echo 'Making the environment .venv/$(1).'
	@rm -rf $(VENV)/$(1)
	@$(PYTHON) -m venv $(VENV)/$(1)
	@$(call install,$(1),$(2))
endef

# The same, if what is installed lists all packages with their versions: what they depend on need not be looked for. If
# something lacks, as on another system than the list's, it is looked for after all.
define pinned_environment
	$(call environment,$(1),--no-deps $(2))
	@$(VENV)/$(1)/bin/python -m pip check || { $(call install,$(1),$(2)); }
endef

$(VENV)/demo/.made: pyproject.toml requirements/dev.txt | $(VENV)/uv/.made
	$(call environment,demo,--constraint requirements/dev.txt --editable '.[examples]')
	@touch $@

$(VENV)/dev/.made: requirements/dev.txt | $(VENV)/uv/.made
	$(call pinned_environment,dev,--requirement requirements/dev.txt --editable .)
	@touch $@

$(VENV)/oldest/.made: requirements/dev.txt requirements/oldest.txt | $(VENV)/uv/.made
	$(call pinned_environment,oldest,--requirement requirements/oldest.txt --editable .)
	@touch $@

$(VENV)/bench/.made: requirements/dev.txt requirements/bench.txt | $(VENV)/uv/.made
	$(call environment,bench,--requirement requirements/bench.txt --editable .)
	@touch $@

# PyTorch's own index has the builds without CUDA, which are far smaller.
$(VENV)/torch/.made: requirements/dev.txt | $(VENV)/uv/.made
	$(call environment,torch,--requirement requirements/dev.txt --editable .)
	@$(VENV)/torch/bin/python -m pip install --progress-bar off --no-compile --extra-index-url $(TORCH_INDEX) $(TORCH)
	@touch $@

$(PEERS:%=$(VENV)/%/.made): $(VENV)/%/.made: requirements/peers/%.txt | $(VENV)/uv/.made
	$(call environment,$*,--requirement requirements/peers/$*.txt)
	@touch $@

environments: $(VENV)/dev/.made $(VENV)/oldest/.made

demo: $(VENV)/demo/.made ## Run a search on real data, kill it, and resume it
	@$(VENV)/demo/bin/python examples/demo.py

test: lint unit ## Lint, check types, and run all tests

lint: $(VENV)/dev/.made ## Lint and check types
	$(VENV)/dev/bin/ruff check .
	$(VENV)/dev/bin/ruff format --check .
	$(VENV)/dev/bin/lint-imports --no-cache
	$(VENV)/dev/bin/mypy
	$(VENV)/dev/bin/pyright --pythonpath $(VENV)/dev/bin/python --warnings

format: $(VENV)/dev/.made ## Format the code
	$(VENV)/dev/bin/ruff check --fix .
	$(VENV)/dev/bin/ruff format .

unit: $(VENV)/dev/.made ## Run the tests, on the newest optuna
	$(VENV)/dev/bin/python -m pytest $(AT_ONCE)

coverage: $(VENV)/dev/.made ## Run the tests, show what they do not reach, and fail below 95% of lines and branches
	$(VENV)/dev/bin/python -m pytest $(AT_ONCE) --cov --cov-report term

oldest: $(VENV)/oldest/.made ## Run the tests on the oldest optuna, flytekit and wrapt supported
	$(VENV)/oldest/bin/python -m pytest $(AT_ONCE) -m "not newest"

torch: $(VENV)/torch/.made ## Run the tests of samplers with PyTorch, which GPSamplers need
	$(VENV)/torch/bin/python -m pytest $(AT_ONCE) tests/sampling

next: | $(VENV)/uv/.made ## Run the tests on the newest versions of all packages, pre-releases included
	$(call environment,next,--pre --requirement requirements/next.in)
	@$(call install,next,--no-deps --editable .)
	$(VENV)/next/bin/python -m pip list | grep -iE 'flyte|optuna|wrapt|grpcio |greenlet|rich'
	$(VENV)/next/bin/python -m pytest $(AT_ONCE) -W default

docs: $(VENV)/dev/.made ## Build the documentation into docs/_build
	$(VENV)/dev/bin/python -m sphinx --fail-on-warning --builder html docs docs/_build

bench: $(VENV)/$(BENCH)/.made $(MEASURED_PEERS:%=$(VENV)/%/.made) ## Measure against the ideal and the peers; ROWS=quality measures a part
	$(VENV)/$(BENCH)/bin/python -m benchmarks $(ROWS)

sweeps: $(VENV)/dev/.made ## Cut a search at every single step; ONLY="journal sqlite" names the storages
	$(VENV)/dev/bin/python -W ignore -m tests.sweeps --stride $(STRIDE) $(addprefix --only ,$(ONLY))

soak: $(VENV)/dev/.made sweeps ## Cut, cancel and kill searches at every step and at random moments, and look what is left
	CANCEL_EVERY=1 $(VENV)/dev/bin/python -m pytest $(AT_ONCE) -q tests/search/test_loop_cancellation.py
	$(VENV)/dev/bin/python -W ignore -m tests.soak_strangers
	$(VENV)/dev/bin/python -W ignore -m tests.soak_cluster
	$(VENV)/dev/bin/python -W ignore -m tests.soak --kills $(KILLS)

clean: ## Remove all environments and caches
	rm -rf $(VENV) docs/_build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
