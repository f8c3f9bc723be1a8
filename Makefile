# Two commands for a newcomer: `make demo` and `make test`. Both set themselves up first, once.
.PHONY: setup demo test alone lint docs clean

PYTHON ?= python3
UV := $(shell command -v uv || echo .venv/bin/uv)
export RAY_ENABLE_UV_RUN_RUNTIME_ENV = 0

setup: .venv/ready

.venv/ready: pyproject.toml */pyproject.toml
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@command -v uv >/dev/null || test -x .venv/bin/uv || .venv/bin/python -m pip install -q uv
	$(UV) sync --all-packages --all-extras --no-extra scores --compile-bytecode --quiet
	@touch $@

demo: setup
	.venv/bin/motet demo

test: setup lint
	.venv/bin/python -m pytest

# Each room installed alone, in an environment that is made for it and deleted afterwards.
alone: setup
	.venv/bin/python tests/alone.py

# The reference written anew, then the site, into site/: open site/index.html.
docs: setup
	.venv/bin/python docs/make/write_reference.py
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache
	@for room in */src; do .venv/bin/deptry --config $${room%src}pyproject.toml $$room || exit 1; done
	.venv/bin/mypy

clean:
	rm -rf .venv .alone demo site
