# make demo and make test do their own set-up on a fresh machine; everything is installed into .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests start Python hundreds of times: the modules are compiled once, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo page test test-slow test-kills lint clean

$(VENV)/.installed: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python demo.py

page: $(VENV)/.installed
	$(BIN)/python share.py web meshnet16-cascade page

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow or not slow"

test-kills: $(VENV)/.installed
	$(BIN)/python -m pytest -m kills

lint: $(VENV)/.installed
	$(BIN)/ruff check .

clean:
	rm -rf demo page .pytest_cache .ruff_cache
