"""Checks the source: `python -m playground.tools.lint` (`--fix` mends what can be mended).

ruff formats and lints Python, oxlint lints the scripts that run in the browser, basedpyright checks
types (pyproject.toml says how, and where not yet). All of them come with requirements-lint.txt.
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("playground/*/browser/*.js"))
# A component's files run as one function body, which Gradio hands these.
FROM_GRADIO = ("element", "props", "watch", "trigger", "server", "upload")
_DECLARED = re.compile(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", re.MULTILINE)


def declared_names() -> dict[str, bool]:
    """What the scripts declare at their top level; whether another of them uses it."""
    texts = [path.read_text("utf-8") for path in SCRIPTS]
    return {
        name: any(re.search(rf"\b{name}\b", text) for text in texts if text is not own)
        for own in texts
        for name in _DECLARED.findall(own)
    }


def oxlint_config() -> dict:
    """What is outright wrong is an error, and so is a name that nobody declares or nobody uses."""
    names = declared_names()
    used = "|".join(name for name, elsewhere in names.items() if elsewhere)
    return {
        "categories": {"correctness": "error"},
        "env": {"browser": True, "es2024": True},
        "globals": dict.fromkeys([*names, *FROM_GRADIO], "readonly"),
        "rules": {
            "no-undef": "error",
            "no-unused-vars": ["error", {"varsIgnorePattern": f"^({used})$"}],
            "eqeqeq": "error",
            "no-var": "error",
            "prefer-const": "error",
            # Scripts of Gradio's events are one function expression each.
            "no-unused-expressions": "off",
            # core.js makes control characters visible.
            "no-control-regex": "off",
        },
    }


def oxlint() -> int:
    """Its exit status."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
        json.dump(oxlint_config(), config)
        config.flush()
        return run("oxlint", "-c", config.name, *map(str, SCRIPTS))


def run(program: str, *arguments: str) -> int:
    """A program's exit status, taken from beside this Python."""
    path = Path(sysconfig.get_path("scripts")) / program
    if not path.exists():
        raise SystemExit(f"{program} is missing: pip install -r requirements-lint.txt")
    print(f"-- {program}", flush=True)
    return subprocess.run([str(path), *arguments], cwd=ROOT).returncode


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Checks the source.")
    parser.add_argument("--fix", action="store_true", help="format, and mend what can be mended")
    return parser


def main() -> None:
    fix = settings().parse_args().fix
    failed = [
        run("ruff", "format", *([] if fix else ["--check"]), "."),
        run("ruff", "check", *(["--fix"] if fix else []), "."),
        oxlint(),
        run("basedpyright", "--pythonpath", sys.executable),
    ]
    sys.exit(any(failed))


if __name__ == "__main__":
    main()
