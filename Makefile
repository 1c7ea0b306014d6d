# make          set up, then audit three small networks and say what was found
# make test     set up, then run every test and every notebook
# make docs     set up, then build the site into _docs/ (warnings are errors)
# make lab      set up, then open the notebooks in JupyterLab
# make bench    set up, then time the package beside its peers, into bench/results.md
#
# For authors: make export (notebooks -> modules, tests, README; comments -> docstrings), make notebooks (run them and
# keep what they show), make check (style, walls between modules, what is generated), make clean. Needs python3 (3.10 or newer; or make PYTHON=...) and nothing else.

PYTHON ?= python3
BIN := .venv/bin
# One BLAS thread a process: two processes of two threads each are slower than two of one.
export OMP_NUM_THREADS := 1
# Notebooks that show the command line call it by its name; bars of progress are not for keeping; frames are as wide
# wherever they are run.
NOTEBOOKS := PATH="$(CURDIR)/.venv/bin:$$PATH" COLUMNS=80 TQDM_DISABLE=1 $(BIN)/nbdev-test --n-workers 2

.PHONY: run test docs lab bench export notebooks check clean

run: .venv/ready
	$(BIN)/specialize-nb demo --out report

test: .venv/ready
	$(BIN)/pytest -n 2
	$(BIN)/python tools/stories.py _stories # without their tests, which pytest has run
	$(NOTEBOOKS) --timing _stories

docs: .venv/ready
	rm -rf _docs
	$(BIN)/python docs/pages.py _proc
	$(BIN)/sphinx-build -W --keep-going -q -c docs _proc _docs
	rm -rf jupyter_execute
	$(BIN)/python tools/check_offline.py _docs
	@echo "The site: $(CURDIR)/_docs/index.html"

lab: .venv/ready
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(BIN)/jupyter lab nbs

bench: .venv/ready
	$(BIN)/python bench/harness.py

export: .venv/ready
	$(BIN)/nbdev-export
	$(BIN)/python tools/docstrings.py
	$(BIN)/python tools/house.py
	$(BIN)/python tools/readme.py

notebooks: .venv/ready
	$(NOTEBOOKS) --save
	$(BIN)/nbdev-clean

check: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/check_walls.py
	$(BIN)/python tools/docstrings.py --check
	$(BIN)/python tools/house.py --check
	$(BIN)/python tools/check_notebooks.py

clean:
	rm -rf _docs _proc _stories jupyter_execute report build *.egg-info .pytest_cache .ruff_cache

# Set-up: done once, and again when a file that names requirements changes.
.venv/ready: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "This needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Setting up .venv: a few minutes and about 6 GB, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
