# `make check` is exactly what continuous integration runs.
.PHONY: check format

check:
	ruff format --check .
	ruff check .
	mypy --strict
	lint-imports
	pytest

format:
	ruff format .
	ruff check --fix .
