"""The program's log: lines for people, or one JSON object a line for programs.

Prompts and pictures are private and part of no line.
"""

import json
import logging
import os
import time

_VARIABLE = "PI0_PLAYGROUND_LOG_JSON"  # how the worker's process knows
_PLAIN = "%(asctime)s %(name)s %(message)s"


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, and what was said: the fields of a message that is a JSON object
    itself, else `message`; `traceback` of an error."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        line |= _fields(record.getMessage())
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _fields(message: str) -> dict[str, object]:
    if message.startswith("{"):
        try:
            found = json.loads(message)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    return {"message": message}


def configure(*, as_json: bool) -> None:
    """For the program; processes that it starts follow."""
    if as_json:
        os.environ[_VARIABLE] = "1"
    _configure(logging.INFO)


def configure_process() -> None:
    """For a process that the program started: warnings and errors alone."""
    _configure(logging.WARNING)


def _configure(level: int) -> None:
    handler = logging.StreamHandler()
    as_json = os.environ.get(_VARIABLE) == "1"
    handler.setFormatter(JsonLines() if as_json else logging.Formatter(_PLAIN))
    logging.basicConfig(level=level, handlers=[handler])
