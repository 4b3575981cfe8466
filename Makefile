# gdask: what to type. Needs Python >= 3.11 and make; everything else goes into a virtual environment, .venv.
#
#   make demo        simulate a small raw GSAOI night in demo/, reduce it as the tutorial does; then a campaign of two nights
#   make test        run the tests (minutes)
#   make test-slow   run the tests at full size, too, and those that need a real server
#   make lint        check style, line lengths and types
#   make docs        the documentation as a site: build/site/index.html
#   make clean       remove what these made
#
# Another interpreter or place:   make test PYTHON=/path/to/python3.12 VENV=/tmp/gdask-venv

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
JOBS ?= 2
DEMO ?= demo
DEMO_NIGHT ?= --size 768 --roi 766 --n-flats 5
# Two nights of one target by both instruments, and what goes wrong in them (gdask simulate campaign --list-faults).
DEMO_CAMPAIGN ?= --nights 2 --filters Kshort --faults truncated,duplicate,acquisition,cloud

BIN := $(abspath $(VENV))/bin
DEMO_PATH := $(abspath $(DEMO))

.PHONY: help demo test test-slow lint docs clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,10s/^# \{0,1\}//p' Makefile

# The newest interpreter that works is not always the first: a version manager's shim may be there without its version.
$(VENV)/made:
	@set -e; for python in $(PYTHON) $(if $(PYTHON),,python3 python3.13 python3.12 python3.11 python3.14 python \
	    /usr/bin/python3 /usr/local/bin/python3); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "$$("$$python" --version): virtual environment in $(VENV)"; \
	    "$$python" -m venv --clear "$(VENV)"; touch $@; exit 0; \
	  fi; \
	done; \
	echo "make: no Python >= 3.11 with its venv module was found (Debian: apt install python3-venv);" >&2; \
	echo "      name one with make PYTHON=/path/to/python3" >&2; exit 1

# Editable: changes of the code need no new installation, changes of pyproject.toml do.
$(VENV)/installed: $(VENV)/made pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/made pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[test,release]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-slow: $(VENV)/installed-test
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[test,release,postgresql]'
	@touch $@

$(VENV)/installed-lint: $(VENV)/made pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable . 'ruff==0.17.*' 'mypy==2.4.*'
	@touch $@

$(VENV)/installed-docs: $(VENV)/made pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

# The field's tutorial (docs/gsaoi.md explains each line). Its last line has skyCorrect:offset_sky=False, too, which gdask
# chooses by itself where it is needed.
define TUTORIAL
typewalk -d raw
dataselect --tags FLAT --expr "filter_name=='Kshort'" raw/*.fits -o flats_Kshort.list
dataselect --expr 'observation_class=="partnerCal"' raw/*.fits | showd -d object
dataselect --expr 'object=="9132"' raw/*.fits -o std_9132.list
dataselect --expr '(observation_class=="science" and exposure_time==60.)' raw/*.fits -o science.list
caldb init ; caldb config ; caldb add raw/bpm*.fits ; caldb list
reduce @flats_Kshort.list
reduce @std_9132.list
reduce @science.list -r checkWCS
reduce @science.list -p prepare:bad_wcs=fix
endef
export TUTORIAL

# The calibration database is the demo's own, not that of ~/.dragons.
demo: $(VENV)/installed
	rm -rf "$(DEMO)"
	"$(BIN)/gdask" simulate gsaoi "$(DEMO)" $(DEMO_NIGHT)
	@cd "$(DEMO)" && printf '[calibs]\ndatabases = cal_manager.db get store\n' > dragonsrc; \
	PATH="$(BIN):$$PATH" DRAGONSRC=dragonsrc; export PATH DRAGONSRC; \
	printf '%s\n' "$$TUTORIAL" | while IFS= read -r line; do \
	  printf '\n> %s\n' "$$line"; eval "$$line" </dev/null || exit 1; \
	done
	@echo; echo "> gdask simulate campaign campaign $(DEMO_CAMPAIGN)"
	@cd "$(DEMO)" && "$(BIN)/gdask" simulate campaign campaign $(DEMO_CAMPAIGN)
	@echo; echo "> gdask run campaign/raw -o reduced"
	@cd "$(DEMO)" && { "$(BIN)/gdask" run campaign/raw -o reduced || test $$? = 3; } && "$(BIN)/gdask" status reduced
	@echo; echo "The images (North up, East left, electrons; SCI, VAR, DQ):"; ls "$(DEMO_PATH)"/*_image.fits "$(DEMO_PATH)"/reduced/*/*/*/*_image.fits
	@echo "The truth about them: $(DEMO)/truth. To go on by hand: . $(VENV)/bin/activate; cd $(DEMO)"

test: $(VENV)/installed-test
	"$(BIN)/python" -P -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(PYTEST)

test-slow: $(VENV)/installed-slow
	"$(BIN)/python" -P -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

lint: $(VENV)/installed-lint
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy" --no-error-summary -p gdask
	"$(BIN)/mypy" --no-error-summary --explicit-package-bases cluster recipes

# No network is asked; a warning is an error. The gallery's pictures are made by the code that they show.
docs: $(VENV)/installed-docs
	rm -rf build/site build/doctrees docs/gallery docs/examples/night docs/examples/calibrations
	cd docs && "$(BIN)/python" -P -m sphinx -q -W --keep-going -b html -d ../build/doctrees . ../build/site
	@echo "the site: build/site/index.html"

clean:
	rm -rf "$(VENV)" $(DEMO) build dist *.egg-info docs/api docs/commands docs/gallery docs/project docs/examples/night docs/examples/calibrations docs/examples/*.fits docs/examples/*.db docs/examples/*.log docs/examples/.gdask .pytest_cache .ruff_cache .hypothesis .mypy_cache
	find gdask recipes cluster tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
