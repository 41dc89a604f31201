# Shortcuts for the commands of README; each does its own set-up.
.PHONY: page test lint

.venv/ready: requirements.txt requirements-dev.txt
	python3 -m venv .venv
	.venv/bin/pip install -q -r requirements-dev.txt
	touch $@

page: .venv/ready
	.venv/bin/python app.py

test: .venv/ready
	.venv/bin/python -m pytest

lint: .venv/ready
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
