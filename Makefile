# make demo, make test: all set-up included. Needs Python 3.11, git and a package index.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Bytecode is kept, whatever the shell says: without it, each process of the tests compiles 450 files.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test slow deployment e2e check lint types map settings reference docs fmt clean

demo: $(STAMP)  ## train a byte-level GPT over 8 sites by scalars alone
	$(BIN)/dandelion run --name demo-$$(date +%Y%m%d-%H%M%S)

test: $(STAMP)  ## the default tests: no network, no GPU
	$(BIN)/python -m pytest -n 2

slow: $(STAMP)  ## the tests that start processes or take long
	$(BIN)/python -m pytest -m slow -n 3 --dist loadfile

deployment: $(STAMP)  ## the tests of separate machines: SuperLink, SuperNodes, TLS, faults
	$(BIN)/python -m pytest -m deployment

e2e: $(STAMP)  ## their core, in some eighteen minutes: digests over TLS, and kill -9 of each part
	$(BIN)/python -m pytest -m "deployment and not soak"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

map: $(STAMP)  ## write docs/reference/files.md anew
	$(BIN)/python docs/file_map.py --write

settings: $(STAMP)  ## write the page of settings and the defaults of pyproject.toml anew
	$(BIN)/python -m docs.settings

reference: map settings  ## write all generated pages of docs/reference anew
	$(BIN)/python docs/generate.py --write
	$(BIN)/python -m docs.python_api --write

docs: reference  ## build the documentation site into site/
	$(BIN)/mkdocs build --strict

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV)
