# make demo   two cameras from real material, live, without a camera or a GPU
# make test   the tests
# make check  format, lint, types
#
# Each makes .venv when it is missing or older than pyproject.toml or constraints.txt.

PYTHON ?= python3
SOURCE ?=
SECONDS ?=
OUT ?= demo-output
PYTEST_ARGS ?=

READY := .venv/.ready
BIN := .venv/bin

.PHONY: demo test check clean
.DEFAULT_GOAL := demo

demo: $(READY)
	@$(BIN)/visaged demo --out "$(OUT)" $(if $(SOURCE),--source "$(SOURCE)") $(if $(SECONDS),--seconds $(SECONDS))

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy typings/visaged tests

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version): about a minute, once" >&2
	@$(PYTHON) -m venv .venv \
	  || { echo "no venv module: apt install python3-venv, then make again" >&2; rm -rf .venv; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
