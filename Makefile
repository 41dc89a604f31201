# Shortcuts for the commands of README; each does its own set-up.
.PHONY: page test lint fix

.venv/ready: requirements.txt requirements-dev.txt requirements-lint.txt
	python3 -m venv .venv
	.venv/bin/pip install -q -r requirements-lint.txt
	touch $@

page: .venv/ready
	.venv/bin/python app.py

test: .venv/ready
	.venv/bin/python -m pytest

lint: .venv/ready
	.venv/bin/python -m playground.tools.lint

fix: .venv/ready
	.venv/bin/python -m playground.tools.lint --fix
