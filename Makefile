# Main targets: make install, make train, make test. The README explains how to work without make.
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE
BIN = .venv/bin
STAMP = .venv/.installed
INTEROP = .venv/.interop
PICTURES = .venv/.pictures
DOCS = .venv/.docs
RELEASE = .venv/.release

.PHONY: install train test lint types map reference reports docs docs-check pictures wheel-check fuzz slow interop programs browser ranks check reliability soak clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gptcli needs Python 3.10 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP)
	$(BIN)/gptcli train
	$(BIN)/gptcli sample --max-new-tokens 400

# Has the same result every time: no random examples, no timed tests. Python keeps the compiled modules,
# because hundreds of processes import them.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# Writes the table of files in CONTRIBUTING.md, from the first paragraph of each file.
map: $(STAMP)
	$(BIN)/python docs/file_map.py

# Writes docs/reference: config keys, commands and the Python interface, from the code.
reference: $(STAMP)
	$(BIN)/python docs/reference.py

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

# Writes the reports in docs/course: what the checks say about files with one mistake each.
reports: $(STAMP)
	$(BIN)/python docs/course_reports.py

# Builds the website of the docs in build/site; open build/site/index.html.
docs: $(DOCS)
	$(BIN)/python docs/build_site.py

# Builds the site and opens it in Chromium. Runs every command and program of the docs, if the packages that it
# needs are installed (`make programs` installs them).
docs-check: $(DOCS)
	$(BIN)/python -m pytest -n 2 tests/docs
	$(BIN)/python -m pytest -n 2 --dist worksteal --slow tests/docs

# Installs the packages that draw pictures: pyte (a terminal), playwright, Pillow and matplotlib.
$(PICTURES): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,pictures]'
	@touch $@

# Draws every picture of the docs from the commands that the picture shows. Needs Chromium. Trains runs in
# build/pictures.
pictures: $(PICTURES)
	$(BIN)/python docs/pictures.py

$(RELEASE): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,release]'
	@touch $@

# Installs the built wheel in an empty environment outside the checkout, with pip and with uvx. Needs the package
# index.
wheel-check: $(RELEASE)
	$(BIN)/python tests/wheel_check.py

# Runs every property test with random examples, then every parser with random inputs
# (FUZZ=2000000 takes a night). Saves failing examples as patches in .hypothesis/patches, and failing inputs
# in tests/fuzz/found.txt.
FUZZ ?= 200000
fuzz: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile=random
	$(BIN)/python -m tests.fuzz.run --count $(FUZZ)

# Runs the tests that `make test` leaves out or shortens: tests that take seconds each, every moment at
# which a save can be killed or fail, and every mistake in every style of learners' code. Here gptcli starts
# as a new process, but `make test` forks a process that has imported PyTorch. Takes most of an hour.
slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal --slow

# Runs the tests that need other programs, a browser or several processes, with their slow tests.
interop: programs browser ranks

# Installs the programs that read exports, OpenAI's client, Jupyter and playwright.
$(INTEROP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,interop]'
	@touch $@

# Runs the slow tests that use these programs, Jupyter and OpenAI's client.
programs: $(INTEROP)
	$(BIN)/python -m pytest -n 2 --slow tests/interop tests/serving tests/api/test_api_notebook.py

# Opens pages in Chromium or Chrome with playwright, and tests them with axe-core if npm is installed. Debian's
# packages: chromium fonts-dejavu nodejs npm.
browser: $(INTEROP)
	if command -v npm > /dev/null; then npm install --silent --no-save --prefix build/axe axe-core@4; fi
	$(BIN)/python -m pytest -n 2 --slow tests/pages tests/serving/test_serving_page.py

# Trains in two and four processes, kills processes, and trains across two network namespaces (as root).
ranks: $(STAMP)
	$(BIN)/python -m pytest -n 2 --slow tests/distributed

check: test lint types wheel-check

# Tests every promise about runs and files many times. `make reliability` takes under ten minutes. `make soak`
# makes the full number of trials, and can be stopped and continued.
reliability: $(STAMP)
	$(BIN)/python -m benchmarks.reliability

soak: $(STAMP)
	$(BIN)/python -m benchmarks.reliability --full --state build/soak.jsonl

clean:
	rm -rf .venv dist build
