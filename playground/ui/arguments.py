"""The command line of `app.py`. Nothing here loads Gradio."""

import argparse
import importlib.util
import os
import urllib.parse

ROBOTS_PORT = 8000  # openpi's


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Opens the playground, on the bundled policies."
    )
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument("--host", default=host, help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=port, help="port to listen on (%(default)s)"
    )
    parser.add_argument(
        "--allow-host",
        nargs="+",
        metavar="NAME",
        default=os.environ.get("PI0_PLAYGROUND_ALLOW_HOST", "").split(),
        help="further names that the page is reached under, through a proxy for example",
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=os.environ.get("PI0_PLAYGROUND_CHECKPOINT", "").split(),
        help="openpi's names, a folder (it may need the next three), or JSON files that name one",
    )
    parser.add_argument(
        "--check",
        nargs="*",
        metavar="CHECKPOINT",
        help="say what these, or those of --checkpoint, are and whether they open, and end",
    )
    parser.add_argument("--config", help="the folder's: openpi's name for it, or a JSON file")
    parser.add_argument("--robot", help="of a LeRobot folder: a name or a JSON file")
    parser.add_argument("--asset-id", help="whose norm stats of the folder, where not the config's")
    parser.add_argument(
        "--robots",
        nargs="?",
        type=int,
        const=ROBOTS_PORT,
        metavar="PORT",
        help="serve robots too, by openpi's websocket, on a port of its own (%(const)s)",
    )
    parser.add_argument(
        "--shadow",
        type=server_url,
        metavar="URL",
        help="pass robots on to their own policy server, ws://HOST:PORT; ours answer beside it",
    )
    parser.add_argument(
        "--log-json", action="store_true", help="write the log as one JSON object a line"
    )
    parser.add_argument(
        "--mcp",
        action=_Extra,
        module="mcp",
        help="offer the endpoints to agents as tools (needs requirements-mcp.txt)",
    )
    parser.add_argument(
        "--engine",
        choices=["process", "ray"],
        default="process",
        help="where policies run: in one process, or on a Ray cluster (needs requirements-ray.txt)",
    )
    parser.add_argument(
        "--replicas",
        type=replicas,
        default=None,
        metavar="N",
        help="engines on the cluster: 2, or 2-8 for more of them while many wait (1)",
    )
    parser.add_argument(
        "--share",
        type=share,
        default=1.0,
        metavar="PART",
        help="of a GPU, or of a core where there is none, for each engine (%(default)s)",
    )
    # For a start that the page asked for, from the one before it (`checkpoints.Reopening`).
    parser.add_argument("--otherwise", help=argparse.SUPPRESS)
    parser.add_argument("--because", default="", help=argparse.SUPPRESS)
    return parser


class _Extra(argparse.Action):
    """A flag that needs a package which requirements.txt leaves out. module: of that package."""

    def __init__(self, option_strings, dest, module: str, **further):
        super().__init__(option_strings, dest, nargs=0, default=False, **further)
        self._module = module

    def __call__(self, parser, namespace, values, option_string=None):
        _require(parser, str(option_string), self._module)
        setattr(namespace, self.dest, True)


def _require(parser: argparse.ArgumentParser, option: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        parser.error(f"{option} needs: pip install -r requirements-{module}.txt")


def place(args: argparse.Namespace) -> list[str]:
    """The arguments that say where and how to serve, for a start anew on other checkpoints."""
    found = ["--host", args.host, "--port", str(args.port)]
    found += [] if args.robots is None else ["--robots", str(args.robots)]
    found += [] if args.shadow is None else ["--shadow", args.shadow]
    found += ["--mcp"] if args.mcp else []
    if args.engine == "ray":
        found += ["--engine", "ray", "--share", str(args.share)]
        found += ["--replicas", "{}-{}".format(*args.replicas)] if args.replicas else []
    return found + (["--log-json"] if args.log_json else [])


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Ends the program where arguments do not go together, or lack a package."""
    if args.engine == "ray":
        _require(settings(), "--engine ray", "ray")
    elif args.replicas is not None or args.share != 1.0:
        settings().error("--replicas and --share belong to --engine ray")
    return args


def replicas(text: str) -> tuple[int, int]:
    """(fewest, most) of "2" or "2-8"."""
    fewest, _, most = text.partition("-")
    if not (fewest.isdecimal() and (most or fewest).isdecimal()):
        raise argparse.ArgumentTypeError(f"replicas are a number, or two as in 2-8, not {text!r}")
    found = int(fewest), int(most or fewest)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"at least one, and no more than the most; {text!r} came")
    return found


def share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"a share is more than 0 and at most 1, not {text!r}")
    return found


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def server_url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"a policy server is ws://HOST:PORT, not {text!r}")
    return text
