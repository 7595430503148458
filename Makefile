# Two commands do everything on a fresh Debian machine: `make run` and `make test`.
SHELL := /bin/sh
VENV := .venv
PYTHON ?= python3
SCENARIOS ?= scenarios
# Machines wait for room on the host, so this many workers never overload it.
JOBS ?= $(shell nproc)
ROUNDS ?= 5
# Lists of Debian packages that a target wants on the host.
PACKAGES := images/host-packages.txt
BENCH_ARGS ?= --catalogue $(SCENARIOS)

.PHONY: run test test-bad-luck test-nightly bench setup host-packages images lint clean

# All but the scenarios that nobody has seen pass yet: their verdict says nothing of the product.
run: setup
	$(VENV)/bin/harness run -j $(JOBS) -k "not unproven" --report results/report $(SCENARIOS)

# Small ones that only tests need: no test of `make test` is skipped for want of a program.
test: PACKAGES = images/host-packages.txt tests/host-packages.txt
test: setup
	$(VENV)/bin/tox

setup: host-packages $(VENV)/.ready

images: setup
	$(VENV)/bin/harness images build

host-packages:
	@tools/install-host-packages $(PACKAGES)

$(VENV)/.ready: pyproject.toml
	@$(MAKE) --no-print-directory host-packages
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "harness needs Python 3.11 or newer")'
	@echo "preparing $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	@touch $@

# Signals, full disks, panics and hangs, against real guests: minutes. HARNESS_TEST_ALL=1 tries every variant.
test-bad-luck: setup
	$(VENV)/bin/pytest tests/vm/test_bad_luck_*.py

# What takes a quarter of an hour, or a browser, and breaks seldom: the page as a reader sees it, the path through KVM in a
# guest that has it, the CI examples' steps.
test-nightly: PACKAGES = images/host-packages.txt tests/nightly-packages.txt
test-nightly: setup
	HARNESS_TEST_ALL=1 $(VENV)/bin/pytest tests/unit/test_page_browser.py tests/vm/test_kvm.py tests/vm/test_ci_examples.py

# Boot to first command against a plain script, whole programs beside labgrid and virtme-ng, the whole catalogue cold and
# warm, on a machine that does nothing else. ROUNDS and BENCH_ARGS choose less.
bench: setup
	@tools/install-host-packages bench/host-packages.txt
	$(VENV)/bin/python -m bench --rounds $(ROUNDS) $(BENCH_ARGS)

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .tox results
