# make train | make test | make install; the README explains how to work without make.
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE
BIN = .venv/bin
STAMP = .venv/.installed
INTEROP = .venv/.interop
PICTURES = .venv/.pictures
DOCS = .venv/.docs
RELEASE = .venv/.release

.PHONY: install train test lint types map reference docs docs-check pictures wheel-check fuzz slow interop programs browser ranks check reliability soak clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gptcli needs Python 3.10 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP)
	$(BIN)/gptcli train
	$(BIN)/gptcli sample --max-new-tokens 400

# Gives the same answer every time: no random examples, no clocks. Python keeps the compiled modules,
# because hundreds of processes import them.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# Writes the table of files in CONTRIBUTING.md, from the first line of each file.
map: $(STAMP)
	$(BIN)/python docs/file_map.py

# Writes docs/reference: config keys, commands and the Python interface, from the code.
reference: $(STAMP)
	$(BIN)/python docs/reference.py

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

# Builds the website of the docs in build/site; open build/site/index.html.
docs: $(DOCS)
	$(BIN)/python docs/build_site.py

# Builds the site and opens it in Chromium; runs every command and program of the docs, as far as what they need
# is installed (`make programs` installs all).
docs-check: $(DOCS)
	$(BIN)/python -m pytest -n 2 tests/docs
	$(BIN)/python -m pytest -n 2 --dist worksteal --slow tests/docs

# Installs what draws pictures: a terminal, playwright and Pillow, matplotlib.
$(PICTURES): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,pictures]'
	@touch $@

# Draws every picture of the docs from the commands that it shows. Needs Chromium; trains runs in build/pictures.
pictures: $(PICTURES)
	$(BIN)/python docs/pictures.py

$(RELEASE): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,release]'
	@touch $@

# Installs the built wheel in an empty environment, outside the checkout, by pip and by uvx. Needs the package index.
wheel-check: $(RELEASE)
	$(BIN)/python tests/wheel_check.py

# Random examples for every property test, then random inputs for every parser (FUZZ=2000000 for a
# night). Failing examples are saved: as a patch in .hypothesis/patches, and in tests/fuzz/found.txt.
FUZZ ?= 200000
fuzz: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile=random
	$(BIN)/python -m tests.fuzz.run --count $(FUZZ)

# The tests that `make test` leaves out or shortens: those that take seconds each, every moment at
# which a save can be killed or fail, and every wrong file of every style. gptcli starts as a fresh
# process; `make test` forks one. Takes most of an hour.
slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal --slow

# What needs other programs, a browser or several processes, with the slow tests of each.
interop: programs browser ranks

# Installs what exports are made for, OpenAI's client, Jupyter and playwright.
$(INTEROP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,interop]'
	@touch $@

# Runs the tests with the programs that exports are made for, with Jupyter, and with OpenAI's client.
programs: $(INTEROP)
	$(BIN)/python -m pytest -n 2 --slow tests/interop tests/serving tests/api/test_api_notebook.py

# Opens pages in Chromium or Chrome, with playwright, and with axe-core if there is npm. Debian's packages: chromium fonts-dejavu nodejs npm.
browser: $(INTEROP)
	if command -v npm > /dev/null; then npm install --silent --no-save --prefix build/axe axe-core@4; fi
	$(BIN)/python -m pytest -n 2 --slow tests/pages tests/serving/test_serving_page.py

# Trains in two and four processes, kills them, and joins two network namespaces (as root).
ranks: $(STAMP)
	$(BIN)/python -m pytest -n 2 --slow tests/distributed

check: test lint types wheel-check

# Tries every promise about runs and files many times: in under ten minutes, or (soak) with the full
# counts, which can be stopped and continued.
reliability: $(STAMP)
	$(BIN)/python -m benchmarks.reliability

soak: $(STAMP)
	$(BIN)/python -m benchmarks.reliability --full --state build/soak.jsonl

clean:
	rm -rf .venv dist build
