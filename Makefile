# Two commands need nothing but Python 3.10-3.13, pip and make: `make demo` and `make test`.
SHELL := /bin/sh
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=
# Processes that the tests are spread over, one thread each; JOBS=0 runs them in one, as a debugger wants.
JOBS ?= 2

# Waiting OpenMP threads must sleep: torch, faiss and numba bring a runtime each and would spin on the same cores.
export OMP_WAIT_POLICY ?= PASSIVE
# pip refuses --user inside an environment; a configuration of the user's may ask for it.
export PIP_USER := 0

# The first Python that runs, is supported and can make an environment. An environment that is there already keeps its
# Python; a pyenv shim exists without running, hence the trial.
USABLE := import sys, venv, importlib.util as u; \
  sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 13) and (u.find_spec('ensurepip') or u.find_spec('pip'))))
PYTHONS := $(RUN) python3.13 python3.12 python3.11 python3.10 python3 python
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in $(PYTHONS); do if "$$p" -c "$(USABLE)" >/dev/null 2>&1; then echo "$$p"; break; fi; done)
endif

# ---- what is installed -----------------------------------------------------------------------------------------------
# EXTRAS and TORCH as they were chosen for this environment last; the command line and the shell's variables go first.
-include $(VENV)/choice.mk
EXTRAS ?= cpu,test
# Other builds of torch and what they need, for example TORCH="torch==2.2.2 torchvision==0.17.2 numpy<2".
TORCH ?=
version = $(shell "$(1)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VERSION := $(call version,$(PYTHON))
# Exact versions, tested together, made by `make lock`. With another torch they may not fit: then setup.py's ranges hold.
LOCK ?= $(if $(TORCH),,constraints/py$(subst .,,$(VERSION)).txt)
# fast-reid pins torch 1.13, which is what --no-deps is for; setup.py lists what it really needs.
HOST := fastreid==1.4.0
PIP = "$(RUN)" -m pip --disable-pip-version-check
INSTALL = $(PIP) install --no-warn-conflicts $(if $(LOCK),--constraint $(LOCK))
quoted = $(foreach word,$(subst ',,$(1)),'$(word)')
# One operator of torchvision's own, and one array across the border between torch and numpy.
VERIFY := import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).numpy()

# The stamp is newer than the files that name requirements, and holds what the environment was made from: a changed file
# or choice installs again, an installation that was interrupted goes on.
STAMP := $(VENV)/installed
WANTED := $(strip $(VERSION) $(CURDIR) $(EXTRAS) $(subst ',,$(TORCH)) $(LOCK))
PRESENT := $(call version,$(RUN))
ifneq ($(PRESENT) $(WANTED),$(VERSION) $(shell cat "$(STAMP)" 2>/dev/null))
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help python setup demo test test-quick clients gpu lint reference lock newest oldest matrix clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo '  PYTHON=python3.12 chooses the Python; EXTRAS=gpu,test and TORCH="torch==2.4.1 torchvision==0.19.1" choose'
	@echo '  what is installed (remembered in $(VENV)); ARGS="-k losses" goes to pytest or to the tool that runs.'

python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "no Python 3.10-3.13 with venv and pip on PATH: install one or name it, make PYTHON=/path/to/python" >&2; \
	  exit 1; fi
	@"$(PYTHON)" -c "$(USABLE)" || { \
	  echo "PYTHON=$(PYTHON) does not run, is not Python 3.10-3.13 or has neither ensurepip nor pip (Debian, Ubuntu:" \
	    "apt-get install python3-venv): name another one" >&2; exit 1; }

setup: python $(STAMP)  ## create .venv and install everything; quick when nothing changed

# Debian and Ubuntu ship ensurepip apart from Python; the Python's own pip fills in for it.
define CREATE
if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; then "$(PYTHON)" -m venv --clear "$(VENV)"; \
else "$(PYTHON)" -m venv --clear --without-pip "$(VENV)" && "$(PYTHON)" -m pip install --quiet pip \
  --target "$$("$(RUN)" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; fi
endef

$(STAMP): Makefile setup.py pyproject.toml fastreid_sskd/__init__.py $(LOCK) | python
	@if [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ] && [ ! -e "$(VENV)/pyvenv.cfg" ]; then \
	  echo "$(VENV) is not a virtual environment and would be overwritten: move it away" >&2; exit 1; fi
	$(if $(filter $(VERSION),$(PRESENT)),,$(CREATE))
	@rm -f "$@"
	@printf 'EXTRAS ?= %s\nTORCH ?= %s\n' '$(EXTRAS)' "$$(echo $(call quoted,$(TORCH)))" >"$(VENV)/choice.mk"
	$(INSTALL) --upgrade pip setuptools
	@# both packages install the module `faiss` and overwrite each other's files
	$(PIP) uninstall -qq --yes $(if $(findstring gpu,$(EXTRAS)),faiss-cpu,faiss-gpu)
	$(INSTALL) --no-build-isolation $(call quoted,$(TORCH)) --editable '.[$(EXTRAS)]'
	$(INSTALL) --no-deps $(HOST)
	@"$(RUN)" -c "$(VERIFY)" || { \
	  echo "torch, torchvision and numpy were installed but do not fit together. A '+cpu' build of torch from a pip" \
	    "configuration does not load PyPI's torchvision, and torch before 2.3 needs numpy<2: name a set that fits, for" \
	    "example make setup TORCH='torch==2.4.1 torchvision==0.19.1'" >&2; exit 1; }
	@echo $(call quoted,$(WANTED)) >"$@"

# ---- what is done with it --------------------------------------------------------------------------------------------
# With the locked versions every test must run: a skip whose reason tests/conftest.py does not list is a failure.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(RUN)" -m pytest -n $(JOBS) --dist loadfile \
  $(if $(LOCK),--only-listed-skips)

demo: setup  ## adapt a model to the synthetic target and print the table of results
	"$(RUN)" tools/compare.py --config-file configs/demo.yml --output runs/demo $(ARGS)

test: setup  ## the whole test-suite
	$(PYTEST) $(ARGS)

test-quick: setup  ## the tests that take less than about ten seconds each
	$(PYTEST) -m "not slow" $(ARGS)

# BoxMOT and ultralytics are AGPL: nothing of ours requires them, and their environment lies above this one's.
CLIENTS := .venv-clients
CLIENT_PACKAGES ?= boxmot[onnx,openvino]==25.0.0 ultralytics==8.4.190
FOR_CLIENTS := build/clients

clients: setup  ## exported models in BoxMOT, ultralytics and OpenVINO; ARGS=FOLDER takes the model of a run
	"$(RUN)" -m venv --clear --without-pip "$(CLIENTS)"
	"$(RUN)" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  >"$$("$(CLIENTS)/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/package.pth"
	"$(CLIENTS)/bin/python" -m pip --disable-pip-version-check install --no-warn-conflicts --quiet \
	  $(call quoted,$(CLIENT_PACKAGES))
	rm -rf "$(FOR_CLIENTS)"
	"$(RUN)" tests/clients/make_files.py "$(FOR_CLIENTS)" $(ARGS)
	CLIENT_FILES="$(FOR_CLIENTS)" "$(CLIENTS)/bin/python" -m pytest -p no:cacheprovider tests/clients/check_clients.py

# No setup: the environment at hand has the right build of torch, .venv where there is one.
gpu:  ## tests and benchmarks of a GPU, and their record; without a GPU it says what it would do
	"$$(test -x "$(RUN)" && echo "$(RUN)" || echo "$(or $(PYTHON),python3)")" benchmarks/gpu.py $(ARGS)

lint: setup  ## ruff
	"$(RUN)" -m ruff check .

reference: setup  ## docs/config.md, from the table of config keys
	"$(RUN)" -c "from fastreid_sskd.config import reference; print(reference(), end='')" >docs/config.md.new
	mv docs/config.md.new docs/config.md

MINORS := 10 11 12 13

lock: python  ## pin the newest versions that fit together, in constraints/, for each supported Python
	"$(PYTHON)" -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	@# pip and setuptools install the rest; every extra, so that one file serves every choice of them
	for minor in $(MINORS); do printf 'pip\nsetuptools>=64\n' | .venv-lock/bin/python -m uv pip compile --quiet --upgrade \
	  --no-annotate --custom-compile-command 'make lock' --python-version 3.$$minor --all-extras \
	  --output-file constraints/py3$$minor.txt setup.py - >/dev/null || exit 1; done
	rm -rf .venv-lock

newest:  ## the quick tests on the newest versions, without the lock, in an environment of its own
	rm -rf .venv-newest
	$(MAKE) test-quick VENV=.venv-newest LOCK=

# The lower bounds of setup.py that have wheels for Python 3.10.
OLDEST := torch==2.1.2 torchvision==0.16.2 numpy==1.26.4 scipy==1.11.4 scikit-learn==1.3.2 numba==0.58.1
# The Python of one version, from PATH or pyenv, as the variable p of the shell.
FIND = for p in python$(1) $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(1).*/bin/python; do \
  "$$p" -c "$(USABLE)" >/dev/null 2>&1 && break; done

oldest:  ## the quick tests on the oldest versions, on Python 3.10
	$(call FIND,3.10); $(MAKE) test-quick VENV=.venv-oldest PYTHON="$$p" TORCH="$(OLDEST)"

matrix:  ## the quick tests on each Python 3.10-3.13 found, in environments that are removed again (6 GB each)
	@for minor in $(MINORS); do $(call FIND,3.$$minor) || { echo "no Python 3.$$minor here"; continue; }; \
	  $(MAKE) test-quick VENV=.venv-3.$$minor PYTHON="$$p" || failed="$$failed 3.$$minor"; rm -rf .venv-3.$$minor; \
	done; if [ -n "$$failed" ]; then echo "failed on Python$$failed" >&2; exit 1; fi

clean:  ## remove caches and build products; runs/ stays
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . \( -path './.venv*' -o -path ./.git -o -path ./runs \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean  ## remove the environments as well
	rm -rf "$(VENV)" .venv-*
