# Every target sets itself up in .venv: a fresh clone needs Python 3.11 or later and `make demo`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo app test test-browser test-lowest lint format wheel constraints clean

# A compression proof on the small models in this repository: no download, no GPU.
demo: .venv/.installed
	$(BIN)/skipstep compare

# The web UI, on this machine only.
app: .venv/.installed-app
	$(BIN)/skipstep-app

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# The web UI in a real browser: needs Chromium (Debian: apt-get install chromium).
test-browser: .venv/.installed-dev
	$(BIN)/pip install --quiet -c constraints.txt -e ".[browser]"
	$(BIN)/python -m pytest tests/app -m browser $(PYTEST_ARGS)

# The oldest versions that pyproject.toml allows, torch aside: its old builds are large.
test-lowest: .typing/skipstep
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest
	sed -n '/^dependencies/,/^]/s/^  "\([A-Za-z]*\)>=\([0-9.]*\)",.*/\1==\2/p' pyproject.toml \
	  | sed '/^torch=/d' > build/lowest/pins.txt
	grep '^torch=' constraints.txt >> build/lowest/pins.txt
	build/lowest/bin/pip install --quiet -c build/lowest/pins.txt -e ".[dev,app]"
	PYTHONPATH=.typing build/lowest/bin/python -m pytest -n 2 $(PYTEST_ARGS)

lint: .venv/.installed-dev .typing/skipstep
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# From a clean copy of what git has staged: a build in the working tree leaves build/lib behind, and
# the next wheel would ship files that were deleted since.
wheel: .venv/.installed-dev
	rm -rf build/wheel dist
	git checkout-index --all --prefix=build/wheel/
	$(BIN)/python -m build --outdir dist build/wheel

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --upgrade --upgrade-strategy eager ".[dev,app]"
	echo "# The exact versions that continuous integration installs; 'make constraints' writes this file." \
	  > constraints.txt
	build/constraints/bin/pip freeze --exclude skipstep | sed 's/+cpu$$//' >> constraints.txt

clean:
	rm -rf .venv .typing build dist *.egg-info

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.installed-app: pyproject.toml constraints.txt .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[app]"
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,app]"
	touch $@

.typing/skipstep:
	mkdir -p .typing
	ln -sfn .. .typing/skipstep
