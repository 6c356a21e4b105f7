# make demo    score the example photos, with nothing else installed
# make test    run all tests
# make fuzz    decode broken photos for ten minutes, or FUZZ_SECONDS
# make chaos   kill a fleet at random while it scores: four runs of CHAOS_ITEMS (10000) with CHAOS_KILLS (100)
# make demo-model  train a demo model in .demo-model, and tell how good it is: see training/README.md
# make lint    ruff, and the Docker files
# make types   mypy
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = .demo-model
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test fuzz chaos demo-model lint types

demo: $(VENV)/worker
	env -u QSIT_BROKER_URL QSIT_DATABASE_URL=sqlite:///.demo/qsit.db $(BIN)/qsit score examples/photos --model demo
	QSIT_DATABASE_URL=sqlite:///.demo/qsit.db $(BIN)/qsit results

test: $(VENV)/test
	$(BIN)/python -m pytest

fuzz: $(VENV)/test
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/worker/imaging/test_fuzz.py

chaos: $(VENV)/test
	CHAOS_KILLS=$${CHAOS_KILLS:-100} $(BIN)/python -m pytest tests/chaos -o log_cli=true -o log_cli_level=INFO

demo-model: $(VENV)/training $(RUN)/train.json $(RUN)/blank/model.safetensors
	$(BIN)/python -m training.train $(RUN)/blank $(RUN)/train.json $(RUN)/trained --validation $(RUN)/validation.json \
		--epochs 6 --batch 32 --rate 1.5e-3 --vision 0 --keep 0.15 --jitter 0.2 --decay 0.5
	$(BIN)/python -m training.figures $(RUN)/trained $(RUN) --plot $(RUN)/figures.png

$(RUN)/train.json: | $(VENV)/training
	$(BIN)/python -m training.copies $(RUN)

$(RUN)/blank/model.safetensors: | $(RUN)/train.json
	$(BIN)/python -m training.blank $(RUN)/blank $(RUN)/train.json

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

types: $(VENV)/test
	$(BIN)/mypy

$(VENV)/worker: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qsit needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[worker]'
	@touch $@

$(VENV)/test: $(VENV)/worker
	$(PIP) --editable '.[worker,postgres,heif,evaluate,test]'
	@touch $@

$(VENV)/training: $(VENV)/worker
	$(PIP) --editable '.[worker,evaluate,training]'
	@touch $@
