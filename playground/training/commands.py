"""Which commands made a folder, noted in it as a shell takes them: for the card of a policy."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_FILE = "commands.txt"


def this_command() -> list[str]:
    """The command that this process was started by, as `python -m module arguments`."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec else Path(sys.argv[0]).name
    return ["python", "-m", name, *sys.argv[1:]]


def note(folder: Path, command: Sequence[str], step: int = 0) -> None:
    """Notes that a folder begins with a command, or goes on from a step with another one."""
    known, line = noted(folder), shlex.join(command)
    if not known or known[-1].partition("  #")[0] != line:
        with (folder / _FILE).open("a", encoding="utf-8") as file:
            file.write(f"{line}  # from step {step:,}\n" if step else f"{line}\n")


def noted(folder: Path) -> list[str]:
    """The commands of a folder, in their order; none if nobody noted them."""
    file = folder / _FILE
    return file.read_text("utf-8").splitlines() if file.exists() else []
