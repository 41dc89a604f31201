"""How fast it is: `python -m playground.tools.bench`.

(nothing)           the policies that the page opens, and several visitors of one worker
--mid CONFIG.json   random weights at the mid sizes that openpi was measured at
--full-size         random weights at the 3B sizes; needs the models' packages alone
--page              the page in a headless browser: times and CPU-seconds of what a visitor does;
                    with --full-size what its answer takes of the 3B models, without a browser
--optimizations     with --mid: each exact optimization, without it and with it
--json FILE         the figures for programs
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--mid", type=Path, help="JSON file of mid-size cases")
    parser.add_argument("--full-size", action="store_true", help="3B shapes, random weights")
    parser.add_argument("--page", action="store_true", help="the page in a headless browser")
    parser.add_argument(
        "--axe", type=Path, help="with --page: axe.min.js of npm's axe-core, to run on each tab"
    )
    parser.add_argument(
        "--scrub", action="store_true", help="with --page: only frames of a recorded episode"
    )
    parser.add_argument("--tiny", action="store_true", help="with --full-size: at small sizes")
    parser.add_argument(
        "--optimizations", action="store_true", help="with --mid: each one, without and with it"
    )
    parser.add_argument("--only", help="the subject or part of this name alone")
    parser.add_argument("--repeats", type=int, default=5, help="warm calls a figure (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    # For the processes that it starts itself.
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--hand-back", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(given: Sequence[str] | None = None) -> None:
    arguments = settings().parse_args(given)
    if arguments.optimizations and not arguments.mid:
        settings().error("--optimizations measures models with random weights: give --mid")
    if arguments.full_size:
        from playground.tools import bench_full_size

        sys.exit(bench_full_size.main(arguments))
    if arguments.page:
        from playground.tools import bench_page

        return bench_page.main(arguments)
    from playground.tools import bench_models

    bench_models.main(arguments)


if __name__ == "__main__":
    main()
