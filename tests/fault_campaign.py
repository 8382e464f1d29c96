"""Raises faults on purpose and reports what survives them.

    python tests/fault_campaign.py                  # all, about half an hour on two cores
    python tests/fault_campaign.py --only kills     # some
    python tests/fault_campaign.py --quick          # a few cases of each

Runs in ComfyUI's environment (scripts/setup_host.py makes one), on Linux or macOS. Parts named
archives, kills and queueing start real servers, archives with Ray. Writes a Markdown table and
ends with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import pkgutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent / "scripts"))

import faults
from faults.report import Outcome, Settings, markdown_table
from in_process import use_comfyui


def part_names() -> list[str]:
    """Returns the campaign's parts: the modules of `faults` that have a `run`."""
    folder = Path(faults.__file__).parent
    return sorted(
        module.name
        for module in pkgutil.iter_modules([str(folder)])
        if "\ndef run(" in (folder / f"{module.name}.py").read_text(encoding="utf-8")
    )


def run_part(name: str, seed: int, quick: bool) -> tuple[list[Outcome], float]:
    """Runs one part in a scratch folder and returns its outcomes and seconds."""
    module = importlib.import_module(f"faults.{name}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"pfstorer-{name}-") as workspace:
        outcomes: list[Outcome] = module.run(Settings(seed, quick, Path(workspace)))
    return outcomes, time.monotonic() - began


def full_report(parts: list[tuple[list[Outcome], float]], command: str) -> str:
    """Returns the report as a page: the command, the counts in all, the table."""
    outcomes = [outcome for found, _ in parts for outcome in found]
    tried, survived, lost = (
        sum(getattr(outcome, count) for outcome in outcomes)
        for count in ("tried", "survived", "lost")
    )
    minutes = sum(seconds for _, seconds in parts) / 60
    return "\n".join(
        [
            "# Faults",
            "",
            "What was done to the plugin on purpose, and whether what should hold afterwards held. "
            f"Made by `{command}` on {datetime.date.today().isoformat()}, in {minutes:.0f} minutes "
            "on a CPU; the seconds of each part stand in its first row.",
            "",
            f"**{tried:,} tried, {survived:,} survived, {lost:,} lost.**",
            "",
            markdown_table(parts),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen parts, prints and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=part_names(), default=part_names())
    parser.add_argument("--quick", action="store_true", help="a few cases of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="for example docs/faults.md; else only printed")
    options = parser.parse_args(arguments)
    use_comfyui()
    parts = []
    for name in options.only:
        print(f"== {name}", flush=True)
        parts.append(run_part(name, options.seed, options.quick))
        print(markdown_table(parts[-1:]), flush=True)
    given = sys.argv[1:] if arguments is None else arguments
    report = full_report(parts, " ".join(["python tests/fault_campaign.py", *given]))
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(report, encoding="utf-8")
    print(report)
    sys.exit(any(outcome.lost for found, _ in parts for outcome in found))


if __name__ == "__main__":
    main()
