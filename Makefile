# make train | make test | make install; see the README for machines without make.
PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed

.PHONY: install train test lint types map wheel-check fuzz check reliability soak clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gptcli needs Python 3.10 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP)
	$(BIN)/gptcli train
	$(BIN)/gptcli sample --max-new-tokens 400

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# The table of files in CONTRIBUTING.md, from the first line of each file.
map: $(STAMP)
	$(BIN)/python docs/file_map.py

# The built wheel, in an empty environment, outside the checkout; needs the package index.
wheel-check: $(STAMP)
	$(BIN)/python tests/wheel_check.py

# Whatever is fed in is accepted or refused in words; FUZZ=2000000 for a night.
FUZZ ?= 200000
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py --count $(FUZZ)

check: test lint types wheel-check

# Every promise about runs and files, tried: under ten minutes, or the full counts, which can be
# stopped and taken up again.
reliability: $(STAMP)
	$(BIN)/python benchmarks/reliability.py

soak: $(STAMP)
	$(BIN)/python benchmarks/reliability.py --full --state build/soak.jsonl

clean:
	rm -rf .venv dist build
