# make demo   two cameras from real material, live, without a camera or a GPU
# make test   the tests
# make check  format, lint, types
#
# Each makes .venv when it is missing or older than pyproject.toml or constraints.txt; the demo needs less in it.

PYTHON ?= python3
SOURCE ?=
SECONDS ?=
OUT ?= demo-output
PYTEST_ARGS ?=
# how many tests that only compute run at once, and processes that check types
WORKERS ?= 2
# for the tests; EXTRAS=dev does without torch, and what needs it skips
EXTRAS ?= dev,learn

READY := .venv/.ready
RUNS := .venv/.runs
BIN := .venv/bin

.PHONY: demo test check clean
.DEFAULT_GOAL := demo

demo: $(RUNS)
	@$(BIN)/visaged demo --out "$(OUT)" $(if $(SOURCE),--source "$(SOURCE)") $(if $(SECONDS),--seconds $(SECONDS))

# Without PYTEST_ARGS what only computes runs side by side first, a thread for each; then, with the machine to
# itself, what runs processes in real time.
test: $(READY)
ifeq ($(strip $(PYTEST_ARGS)),)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not realtime"
	$(BIN)/python -m pytest -p no:xdist -m realtime
else
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -n $(WORKERS) typings/visaged tests

# `pip install $(3) $(1)` into .venv, which is made when it is missing
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version), once: $(2)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  || { echo "no venv module: apt install python3-venv, then make again" >&2; rm -rf .venv; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(3) -c constraints.txt -e "$(1)"
	@touch $@
endef

$(RUNS): pyproject.toml constraints.txt
	$(call install,.,about half a minute)

# not compiled: what the tests import, a part of it, they compile themselves
$(READY): pyproject.toml constraints.txt
	$(call install,.[$(EXTRAS)],a minute or more; torch is the large part,--no-compile)
	@touch $(RUNS)

clean:
	rm -rf .venv build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
