"""Blind comparison of restorations: makes a page for voters, and counts their votes.

    python tools/blind_test.py make RESULTS --out page.html
    python tools/blind_test.py tally votes_*.csv --page page.html

RESULTS has one folder per method, all with pictures of the same names. Its folders `lq` and
`references`, where there are such, are shown beside. Runs in ComfyUI's environment. See
docs/blind_test.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import repository  # noqa: F401
from blind.page import LIKENESS, QUALITY, read_page, write_page
from blind.study import plan_screens, read_results

from pfstorer_core.errors import PFStorerError

SECONDS = 6  # what an answer takes


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the page")
    make.add_argument("results", type=Path, help="folder with one folder of pictures per method")
    make.add_argument("--out", type=Path, required=True, help="the page, an HTML file")
    make.add_argument("--lq", type=Path, help="folder of LQ pictures (default: RESULTS/lq)")
    make.add_argument(
        "--references",
        type=Path,
        help="folder of photos of the people, named as the pictures, or of other names if all "
        "pictures show one person (default: RESULTS/references)",
    )
    make.add_argument("--seed", type=int, default=0, help="of order and sides (default: 0)")
    make.add_argument(
        "--question",
        action="append",
        metavar="TEXT",
        help=f"asked of every pair; may be given several times (default: {LIKENESS!r}, where there "
        f"are references, and {QUALITY!r})",
    )
    make.add_argument(
        "--repeat",
        type=float,
        default=0.1,
        help="share of the pairs that are shown again with swapped sides (default: 0.1)",
    )
    make.add_argument(
        "--limit", type=int, default=1024, help="longer side in pixels at most (default: 1024)"
    )
    make.add_argument(
        "--quality", type=int, default=92, help="of WebP; 100 is lossless (default: 92)"
    )
    tally = commands.add_parser("tally", help="count votes")
    tally.add_argument("votes", type=Path, nargs="+", help="CSV files that the page saved")
    tally.add_argument(
        "--page", type=Path, nargs="+", required=True, help="the page or pages that were voted on"
    )
    return parser.parse_args(arguments)


def make_page(options: argparse.Namespace) -> str:
    """Writes the page and returns a sentence about it.

    Raises:
        PFStorerError: the pictures or the options are not as they should be.
    """
    results = read_results(options.results, options.lq, options.references)
    screens = plan_screens(results.names, sorted(results.methods), options.repeat, options.seed)
    questions = options.question or ([LIKENESS] if results.references else []) + [QUALITY]
    digest = write_page(
        options.out, results, screens, questions, options.seed, options.limit, options.quality
    )
    answers = len(screens) * len(questions)
    repeats = sum(screen.repeat_of is not None for screen in screens)
    return (
        f"Page {digest}: {len(results.methods)} methods ({', '.join(sorted(results.methods))}), "
        f"{len(results.names)} pictures, {len(screens)} screens ({repeats} repeated), {answers} "
        f"answers, about {max(1, round(answers * SECONDS / 60))} min, "
        f"{options.out.stat().st_size / 1e6:.1f} MB: {options.out}"
    )


def tally_votes(options: argparse.Namespace) -> str:
    """Returns the tables of the votes.

    Raises:
        PFStorerError: a page or a file of votes is not as it should be.
    """
    from blind.tally import read_votes, tally  # torch, which making a page does not need

    return tally(read_votes(options.votes, [read_page(path) for path in options.page]))


def main() -> None:
    """Runs the command."""
    options = parse()
    try:
        print({"make": make_page, "tally": tally_votes}[options.command](options))
    except (PFStorerError, OSError) as failure:
        sys.exit(f"error: {failure}")


if __name__ == "__main__":
    main()
