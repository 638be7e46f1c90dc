# Two commands do all set-up on a fresh machine that has Python 3.11 or later:
#   make demo   install what training needs, then run the whole pipe on bundled data
#   make test   install what the tests need, then lint, types and the fast tests
PYTHON ?= python3
BIN := .venv/bin
# For the CPU build of torch: make demo PIP_ARGS="--extra-index-url …" (README, Installing)
PIP_ARGS ?=
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-slow lint types generate lock clean

# make demo LOG=kafka runs it on a Kafka broker from Apache's jars (Java 17 and Maven).
LOG ?=

demo: .venv/demo.installed
	$(BIN)/millrace demo $(if $(LOG),--log $(LOG)) $(ARGS)

# Two at a time: most of them wait for engines. A file stays in one process, with the engines it starts.
test: lint types
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-slow: .venv/dev.installed
	$(BIN)/pytest -m slow $(ARGS)

lint: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev.installed
	$(BIN)/mypy

generate: .venv/dev.installed
	$(BIN)/python -m schemas.generate

.venv/demo.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Millrace needs Python 3.11 or later, this is {v[0]}.{v[1]}; name another one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e '.[train,local]'
	@touch $@

.venv/dev.installed: .venv/demo.installed
	$(INSTALL) -e '.[train,local,dev]'
	@touch $@

# The tested set: everything that is installed now, for all later installs.
lock: .venv/dev.installed
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools > constraints.txt

clean:
	rm -rf .venv .millrace build *.egg-info
