"""Do the tests notice faults? `python -m tests.mutants` makes some and runs the tests on each.

A fault changes one expression of a file: a comparison, an operator, a number, a condition, a call
that is left out. From each group of files as many are drawn, at random but with a seed. Each fault
is written into a copy of what is committed, and the tests of its file run there. A fault that they
pass has survived: it is either no fault, or a test is missing. Further ones were chosen by hand,
each with the few tests that should notice it (`tests.support.chosen_faults`).

    --each 50           faults in each group
    --seed 0            another seed, other faults
    --group guard       only these; several can be named; "chosen" are those chosen by hand
    --path TEXT         only faults of files with this in their path
    --out FILE          one JSON line for each fault as it is done; a second run with the same file
                        goes on where the first one ended
    --again             with the file of an earlier run: tries its survivors anew

Ends with 1 where a fault survived. The tests run one after the other; `nice` it. Needs Linux.
"""

import argparse
import ast
import collections
import copy
import dataclasses
import io
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.chosen_faults import CHOSEN

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = "chosen"
# For the tests of one fault, on however slow a machine, and of their CPU time: who runs for longer
# is caught in a loop, or waits for what never comes. Then for the few of a fault chosen by hand.
LIMIT_S, CPU_S = 1800.0, 600
FEW_S, FEW_CPU_S = 150.0, 150

# By group, what tests notice faults in a file.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "guard": {
        "playground/ui/guard/connections.py": ("test_guard_shares.py",),
        "playground/ui/guard/sessions.py": ("test_guard_sessions.py",),
        "playground/ui/guard/shares.py": ("test_guard_shares.py",),
        "playground/ui/guard/visitors.py": ("test_guard_shares.py",),
        **{
            f"playground/ui/guard/{name}.py": ("test_guard.py", "test_guard_fuzz.py")
            for name in ("door", "files", "functions", "headers", "hosts", "messages", "routes")
        },
    },
    "transforms": {
        "playground/robots/transforms.py": ("test_transforms.py",),
        "playground/robots/conversion.py": ("test_transforms.py", "test_robots.py"),
        "playground/robots/aloha.py": ("test_transforms.py", "test_robots.py"),
        "playground/robots/norm_stats.py": ("test_transforms.py", "test_robots.py"),
        "models/fast_tokenizer.py": ("test_tokenizer.py",),
        "models/tokenizer.py": ("test_tokenizer.py",),
    },
    "decoding": {
        "models/decoding.py": ("test_decoding.py", "test_tokenizer.py"),
        "models/chunking.py": ("test_chunking.py",),
    },
    "models": {
        "models/masks.py": ("test_parity_flow.py", "test_parity_fast.py"),
        "models/siglip.py": ("test_parity_flow.py",),
        "models/gemma.py": ("test_parity_flow.py", "test_parity_fast.py"),
        "models/pi0.py": ("test_parity_flow.py", "test_chunking.py"),
        "models/pi0_fast.py": ("test_parity_fast.py", "test_decoding.py"),
    },
}

_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_JOINED = {ast.And: ast.Or, ast.Or: ast.And}


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """span: line and column (in bytes) of the text's start and end; new: what stands there then."""

    path: str
    span: tuple[int, int, int, int]
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.path}:{self.span[0]}: {old:.70} -> {new:.70}"

    def applied(self, source: str) -> str:
        first, start, last, end = self.span
        lines = source.encode().splitlines(keepends=True)
        before, after = lines[first - 1][:start], lines[last - 1][end:]
        lines[first - 1 : last] = [before + self.new.encode() + after]
        return b"".join(lines).decode()


# --- faults -------------------------------------------------------------------------------------


def faults(path: str, source: str) -> list[Fault]:
    """All that can be made of a file, in order."""
    found = []
    for node in _code(ast.parse(source)):
        if (changed := _changed(node)) is None:
            continue
        place = node.test if isinstance(node, ast.If) else node
        span = (place.lineno, place.col_offset, place.end_lineno, place.end_col_offset)
        old = ast.get_source_segment(source, place)
        found.append(Fault(path, span, old, changed))
    return found


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """What runs: no docstrings, annotations, decorators or words of errors."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "msg", "type_params"):
            continue
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(inner, ast.AST):
                yield inner
                yield from _code(inner)


def _changed(node: ast.AST) -> str | None:
    """The text that takes its place; None where nothing is made of it."""
    match node:
        case ast.Compare(ops=[op]):
            return _written(node, ops=[_COMPARED[type(op)]()])
        case ast.BoolOp(op=op):
            return _written(node, op=_JOINED[type(op)]())
        case ast.BinOp(op=op) if type(op) in _COMPUTED:
            return _written(node, op=_COMPUTED[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return f"({ast.unparse(operand)})"
        case ast.IfExp(body=body, orelse=orelse):
            return _written(node, body=orelse, orelse=body)
        case ast.If(test=test):
            return f"not ({ast.unparse(test)})"
        case ast.Constant(value=bool(value)):
            return str(not value)
        case ast.Constant(value=int(value)):
            return str(value + 1)
        case ast.Constant(value=float(value)):
            return str(value * 2 or 1.0)
        case ast.Expr(value=ast.Call()):
            return "pass"
    return None


def _written(node: ast.AST, **changes: object) -> str:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"


def drawn(groups: list[str], each: int, seed: int) -> list[Fault]:
    """So many of each group; the same ones whichever other groups are asked for."""
    found = []
    for group in groups:
        made = [f for path in GROUPS[group] for f in faults(path, (ROOT / path).read_text())]
        found += random.Random(f"{seed} {group}").sample(made, min(each, len(made)))
    return found


def chosen_by_hand() -> dict[Fault, str]:
    """With the tests of each. Raises ValueError for one that stands nowhere, or several times."""
    found = {}
    for path, rows in CHOSEN.items():
        source = (ROOT / path).read_text()
        for old, new, tests in rows:
            if source.count(old) != 1:
                raise ValueError(f"{path} holds {old!r} {source.count(old)} times; expected once")
            begin = source.index(old)
            ends = [_place(source, at) for at in (begin, begin + len(old))]
            found[Fault(path, (*ends[0], *ends[1]), old, new)] = tests
    return found


def _place(source: str, at: int) -> tuple[int, int]:
    """Line and column, in bytes, of a character."""
    before = source[:at].split("\n")
    return len(before), len(before[-1].encode())


def tests_of(fault: Fault, by_hand: dict[Fault, str]) -> tuple[str, ...]:
    """pytest's arguments."""
    if fault in by_hand:
        name, _, words = by_hand[fault].partition(" -k ")
        return (name, "-k", words) if words else (name,)
    return next(files[fault.path] for files in GROUPS.values() if fault.path in files)


# --- the tests on them --------------------------------------------------------------------------


def clone(folder: Path) -> Path:
    """What is committed, with the reference data beside it as it is here."""
    there = folder / "clone"
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(there, filter="data")
    (folder / "shared").symlink_to(ROOT.parent / "shared")
    return there


def passes(there: Path, tests: tuple[str, ...]) -> bool:
    """Whether these tests do, in a fork of this process, where what they import is imported."""
    process = multiprocessing.get_context("fork").Process(target=_test, args=(there, tests))
    process.start()
    process.join(FEW_S if "-k" in tests else LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == 0


def _test(there: Path, tests: tuple[str, ...]) -> None:
    import pytest

    limit = FEW_CPU_S if "-k" in tests else CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    output = os.open(there / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(there)
    sys.path[:] = [str(there), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    sys.dont_write_bytecode = True
    for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "models", "playground")]:
        del sys.modules[name]
    # Plugins come too late to rewrite what is imported already, which changes no outcome.
    how = ["-n", "0", "-x", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    places = [f"tests/{name}" if name.endswith(".py") else name for name in tests]
    code = pytest.main([*how, *places])
    os._exit(code)


def import_what_tests_import() -> None:
    """Of others' packages: it takes as long as the tests."""
    import flax.nnx  # noqa: F401
    import gradio  # noqa: F401
    import hypothesis  # noqa: F401
    import jax  # noqa: F401
    import playwright.sync_api  # noqa: F401
    import pytest  # noqa: F401
    import scipy.fft  # noqa: F401


def tried(chosen: list[Fault]) -> Iterator[tuple[Fault, bool]]:
    """Each with whether the tests noticed it. Raises RuntimeError if they fail without any."""
    import_what_tests_import()
    with tempfile.TemporaryDirectory() as folder:
        there = clone(Path(folder))
        sound: set[tuple[str, ...]] = set()
        by_hand = chosen_by_hand()
        for fault in chosen:
            tests, file = tests_of(fault, by_hand), there / fault.path
            if tests not in sound and not passes(there, tests):
                raise RuntimeError((there / "tests.log").read_text()[-3000:])
            sound.add(tests)
            source = file.read_text()
            file.write_text(fault.applied(source))
            yield fault, not passes(there, tests)
            file.write_text(source)


# --- report -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    groups = [*GROUPS, BY_HAND]
    parser.add_argument("--group", nargs="+", choices=groups, default=groups)
    parser.add_argument("--path", default="")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    before = read(arguments.out)
    if arguments.again:
        chosen = [fault for fault, noticed in before.items() if not noticed]
    else:
        named = [group for group in arguments.group if group != BY_HAND]
        chosen = drawn(named, arguments.each, arguments.seed)
        chosen += chosen_by_hand() if BY_HAND in arguments.group else ()
        chosen = [fault for fault in chosen if fault not in before]
    chosen = [fault for fault in chosen if arguments.path in fault.path]
    for fault, noticed in tried(chosen):
        before[fault] = noticed
        with arguments.out.open("a") as out:
            out.write(json.dumps(dataclasses.asdict(fault) | {"noticed": noticed}) + "\n")
        print("noticed " if noticed else "SURVIVED", fault, flush=True)
    report(before)
    sys.exit(not all(before.values()))


def read(out: Path) -> dict[Fault, bool]:
    """What an earlier run found; the last word on a fault counts."""
    found = {}
    for line in out.read_text().splitlines() if out.exists() else ():
        values = json.loads(line)
        noticed = values.pop("noticed")
        found[Fault(**values | {"span": tuple(values["span"])})] = noticed
    return found


def report(found: dict[Fault, bool]) -> None:
    by_hand = chosen_by_hand()
    groups = {BY_HAND: [fault for fault in found if fault in by_hand]} | {
        group: [f for f in found if f not in by_hand and f.path in files]
        for group, files in GROUPS.items()
    }
    for group, faults_of_group in groups.items():
        outcomes = collections.Counter(found[fault] for fault in faults_of_group)
        if outcomes:
            print(f"{group}: {outcomes[True]} of {outcomes.total()} noticed")


if __name__ == "__main__":
    main()
