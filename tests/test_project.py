"""The project keeps its own rules: layout of imports, style, and what README promises."""

import ast
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.checkpoints.digests import revision
from playground.checkpoints import catalog, schema
from playground.training.evaluate import table_of
from tests import mutants
from tests.conftest import ROOT

SOURCES = sorted(
    path for folder in ("models", "playground", "tests") for path in (ROOT / folder).rglob("*.py")
)
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
README = PAGES[ROOT / "README.md"]
EVERYTHING = "\n".join(PAGES.values())


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


# Rooms of playground/ from the ground up: a file imports its own room and those of earlier lines.
ROOMS = (
    ("assets", "codec", "process_memory"),
    ("spilled",),
    ("json_file", "trace"),
    ("robots", "cuts"),
    ("serving",),
    ("tabletop", "run_file"),
    ("policies",),
    ("checkpoints",),
    ("analysis", "training"),
    ("datasets",),
    ("views",),
    ("summaries",),
    ("ui",),
    ("tools",),
)
# A command that keeps the name it is known by. It stands above the rooms, and none imports it.
COMMAND = ROOT / "playground" / "datasets" / "evaluate.py"


def rooms_imported(path: Path) -> set[str]:
    """Rooms of playground/ that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "playground":
            names |= {f"playground.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("playground.")}


def test_no_room_imports_one_above_it():
    floor = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    for path in sorted((ROOT / "playground").rglob("*.py")):
        room = path.relative_to(ROOT / "playground").parts[0].removesuffix(".py")
        if room != "__init__" and path != COMMAND:
            others = rooms_imported(path) - {room}
            assert not [other for other in others if floor[other] >= floor[room]], path
        assert "playground.datasets.evaluate" not in imported(path), path


# Parts of others that are named, or imported only where they are there.
UNNAMED = {"pydantic_core", "playwright"}


def test_what_is_imported_is_named_in_the_requirements():
    """Not left to whatever another package happens to bring."""
    files = [ROOT / f"requirements{extra}.txt" for extra in ("", "-mcp", "-ray")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    named = {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines if line[:1].isalpha()}
    distributions = importlib.metadata.packages_distributions()
    own = {"app", "models", "playground", *UNNAMED, *sys.stdlib_module_names}
    for path in [
        ROOT / "app.py",
        *(ROOT / "models").rglob("*.py"),
        *(ROOT / "playground").rglob("*.py"),
    ]:
        for name in tops(path) - own:
            assert {canonical(one) for one in distributions.get(name, [])} & named, (path, name)


def canonical(name: str) -> str:
    """Of a distribution, as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_word_that_stood_for_eight_things_is_gone():
    scripts = [path for kind in ("js", "css", "md") for path in ROOT.glob(f"[dmp]*/**/*.{kind}")]
    for path in [ROOT / "app.py", ROOT / "README.md", *scripts, *SOURCES]:
        assert not re.search(r"(?i)\bto" + r"ld\b", path.read_text()), path


WHOLE = r"(?<![\w#-])(?:html|\.?body|main|\.gradio-container|\.contain|\.left|\.right)(?![\w-])"


def test_no_rule_of_style_looks_through_the_whole_page():
    """What such a rule costs is in gate.css; a script marks the page instead."""
    for path in ROOT.glob("playground/**/*.css"):
        rules = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        assert not re.findall(WHOLE + r"[^\s,{]*:has\(", rules), path


# Python's own, and Gradio's queue; and the runs of a trace, whose inside a test takes apart.
REACHED = {"_exit", "_run", "_queue"}
TAKEN_APART = ROOT / "tests" / "test_causal.py"


def test_tests_reach_no_private_names_of_what_they_test():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())) if path != TAKEN_APART else ():
            match node:
                case ast.Attribute(value=ast.Name(id="self" | "cls")):
                    continue
                case ast.Attribute(attr=name) if re.match("_[^_]", name):
                    assert name in REACHED, (path, node.lineno)
                case ast.Call(func=ast.Attribute(attr="setattr"), args=[*given]):
                    names = [one.value for one in given if isinstance(one, ast.Constant)]
                    private = [n for n in map(str, names) if re.search(r"(^|\.)_[^_]", n)]
                    assert set(private) <= REACHED, (path, node.lineno)


def test_the_mathematics_is_short():
    """What people are sent to read: no file of models/ over 400 lines, no function over 40."""
    for path in (ROOT / "models").rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 40, (path, node.name)


def test_imports_go_one_way():
    for path in SOURCES:
        room = path.relative_to(ROOT).parts
        if room[0] == "models":
            assert not tops(path) & {"playground", "gradio", "plotly", "app"}, path
        if room[0] == "playground":
            assert not tops(path) & {"app", "tests"}, path
        if room[:2] in (("playground", "views"), ("playground", "ui")):
            assert not tops(path) & {"jax", "flax", "optax"}, path
            assert not any(name.startswith("models.pi0") for name in imported(path)), path


def test_the_docs_show_the_figures_that_were_measured():
    """Of the weights that are shipped: an evaluation of others has another revision. README has
    some of them, with every one that missed its aim."""
    folders = [ROOT / "assets" / name for name in catalog.BUNDLED]
    results = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    assert table_of(results) in PAGES[ROOT / "docs" / "training.md"]
    names = ["named cube nearest", "held-out wordings, named cube nearest", "tip error cm"]
    names += [f"closed loop {verb}" for verb in ("pick up", "put on", "put next to")]
    assert table_of(results, names) in README
    assert {name for result in results for name in missed(result["figures"])} <= set(names)
    assert [result["revision"] for result in results] == [revision(f) for f in folders]


def missed(figures: dict) -> list[str]:
    """The names of those short of their target; some are errors, where less is better."""
    return [
        name
        for name, figure in figures.items()
        if (figure["value"] > figure["target"]) == (name.endswith(" cm") or "do not decode" in name)
        and figure["value"] != figure["target"]
    ]


def test_the_page_starts_without_jax():
    """Only the worker's process pays for it, and the page is up at once."""
    check = "import app, sys; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, env=environment)


def test_nothing_is_unpickled():
    for path in SOURCES:
        assert not tops(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        if path.name != Path(__file__).name:
            assert "allow_pickle=True" not in path.read_text(), path


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]])
def test_style(command):
    subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, check=True)


def test_readme_commands_are_what_ci_runs():
    """The set-up and test commands of README are those of .ci/run, and the page's parses."""
    ci = (ROOT / ".ci" / "run").read_text()
    tests = next(block for block in blocks(README, "bash") if "pytest" in block)
    for command in re.split(r"\s*&&\s*|\n", tests.strip()):
        plain = command.replace("pip install -q", "pip install")
        assert plain in ci.replace("pip install -q", "pip install"), f"{command} is not in .ci/run"
    assert any("python app.py" in block for block in blocks(README, "bash"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def documented_commands() -> list[list[str]]:
    """The arguments of every call of Python in the docs, such as ["app.py", "--help"]."""
    lines = "\n".join(blocks(EVERYTHING, "bash")).splitlines()
    calls = [line.split(".venv/bin/python ", 1)[1] for line in lines if ".venv/bin/python " in line]
    return [shlex.split(call, comments=True) for call in calls]


@pytest.mark.parametrize("command", documented_commands(), ids=" ".join)
def test_documented_commands_are_accepted(command):
    """Each names a module of ours, whose parser takes the arguments; pytest is asked for files."""
    if command[:2] == ["-m", "pytest"]:
        files = [word for word in command[2:] if word.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files)
        return
    name, *given = command if command[0] == "app.py" else command[1:]
    module = importlib.import_module(name.removesuffix(".py"))
    module.settings().parse_args(given)


def test_the_documented_config_of_a_fine_tune_is_complete(tmp_path):
    """The JSON that the docs show is one the program takes."""
    found = blocks(EVERYTHING, "json")
    (example,) = [block for block in found if '"my_run"' in block]
    (tmp_path / "my_run.json").write_text(example)
    assert schema.read_openpi_file(tmp_path / "my_run.json").name == "my_run"


def test_every_environment_variable_is_documented():
    """Those that the program reads itself."""
    named = re.findall(r"^\| `([A-Z0-9_]+)` \|", EVERYTHING, re.MULTILINE)
    read = set()
    for path in [ROOT / "app.py", *(ROOT / "playground").rglob("*.py")]:
        read |= set(re.findall(r'environ(?:\.get\(|\.pop\(|\[)"(\w+)"', path.read_text()))
    assert read <= set(named)
    assert not [name for name in named if name.startswith("PI0_") and name not in read]


def test_what_is_pushed_to_a_space():
    """Front matter as Hugging Face wants it, and no file that its Git refuses."""
    front = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))
    assert front["sdk"] == "gradio"
    assert (ROOT / front["app_file"]).is_file()
    oldest = re.search(r"^gradio>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert front["sdk_version"].startswith(oldest[1])
    assert len(front["short_description"]) <= 60
    if not (ROOT / ".git").exists():
        pytest.skip("no Git here to ask what is committed")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pushed = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert ROOT / "requirements.txt" in pushed
    large = {path.name: path.stat().st_size for path in pushed if path.is_file()}
    assert max(large.values()) < 10_000_000, sorted(large.items(), key=lambda x: -x[1])[:3]


# What Python itself and its compiler's runtime bring to any image.
ALWAYS_THERE = re.compile(
    r"(ld-linux|libc\.|libm\.|libdl|libpthread|librt|libutil|libgcc_s|libstdc|libatomic|libgomp"
    r"|libcrypto|libssl|libz\.|libbz2|liblzma|libffi|libuuid|libexpat|libsqlite3|libpython|libmvec"
    r"|libncurses|libtinfo|libreadline|libzstd)"
)
OPEN_ALL = """
import app, gradio, jax, orbax.checkpoint, tokenizers
from models import pi0_fast
from playground.checkpoints import download
from playground.checkpoints import load as loading
from playground.datasets import lerobot, record
from playground.tabletop import render, scene

scene.build_model()
jax.numpy.ones(3).block_until_ready()
for line in open("/proc/self/maps"):
    print(line.split()[-1])
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is loaded")
def test_a_space_needs_no_debian_package():
    """No library is loaded from the system but those that Python is there with; else packages.txt
    would have to name it."""
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", OPEN_ALL]
    ended = subprocess.run(
        command, cwd=ROOT, check=True, env=environment, capture_output=True, text=True
    )
    brought = tuple(os.path.realpath(place) for place in (sys.prefix, sys.base_prefix))
    loaded = {line for line in ended.stdout.splitlines() if ".so" in line}
    system = {Path(line).name for line in loaded if not line.startswith(brought)}
    assert system
    assert not {name for name in system if not ALWAYS_THERE.match(name)}
    assert not (ROOT / "packages.txt").exists()


def test_the_docs_name_files_that_exist():
    """Links, and paths in code spans that begin at one of our folders."""
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for target in re.findall(r"`((?:tests|models|playground|assets)/[\w./]+)`", text):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
    for path in PAGES:
        assert path.name == "README.md" or f"(docs/{path.name})" in README, path.name


def tree() -> set[str]:
    """The paths of README's file tree; four spaces stand for a folder further in."""
    (drawn,) = [block for block in blocks(README, "text") if block.startswith("app.py")]
    folders, paths = [], set()
    for line in drawn.splitlines():
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 4]
        paths.add("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_the_file_tree_in_readme_is_the_real_one():
    """What it names exists, and it names every folder of code."""
    for path in tree():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in SOURCES if "tests" not in path.parts}
    assert rooms <= tree()


def test_the_faults_chosen_by_hand_fit_the_code():
    """Each stands in its file once: `tests.mutants` could not run otherwise."""
    for fault, tests in mutants.chosen_by_hand().items():
        assert fault.old != fault.new
        assert (ROOT / "tests" / tests.split()[0]).is_file(), tests
