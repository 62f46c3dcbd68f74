# One environment, two jobs. Everything is set up on first use.
VENV ?= .venv
DEMO ?= demo
RUN = . $(VENV)/bin/activate &&
STAMP = $(VENV)/.installed

.PHONY: help env demo test slow lint format clean

help:
	@echo "make demo   environment, then: train on synthetic tissue, predict an unseen patient, evaluate, report"
	@echo "make test   environment, then the tests"
	@echo "make slow   tests of several processes and long trainings, which make test leaves out"
	@echo "make lint   environment, then ruff and mypy"

env: $(STAMP)

# uv builds the whole matched stack in half a minute; where it is missing, pip brings it
$(STAMP): requirements.lock pyproject.toml
	@command -v uv >/dev/null 2>&1 || python3 -m pip install --quiet uv
	@test -x $(VENV)/bin/python || uv venv --quiet --python '>=3.11' $(VENV)
	$(RUN) uv pip sync --quiet requirements.lock
	$(RUN) uv pip install --quiet --no-deps --editable .
	@touch $(STAMP)

demo: env
	$(RUN) hescribe demo --output $(DEMO) --overwrite

test: env
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "not slow"

# Tests that start several processes, or train for long
slow: env
	$(RUN) python -m pytest -m slow

lint: env
	$(RUN) ruff check . && ruff format --check . && mypy

format: env
	$(RUN) ruff check --fix . ; ruff format .

clean:
	rm -rf $(VENV) $(DEMO)
