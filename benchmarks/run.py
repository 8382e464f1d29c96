"""Measures what restorers, adapters and tiles cost, as ratios.

    python benchmarks/run.py

Writes benchmarks/RESULTS.md and its plots in docs/images, on the GPU if there is one. With --only,
the file's other sections stay as they are.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import kernels
import sizes
import startup
import step_cost
import steps
import tiles
import torch
import training
from in_process import use_comfyui
from report import Section, write_report
from setup_host import REPO

SECTIONS: dict[str, tuple[str, Callable[..., Section]]] = {
    "kernels": (kernels.TITLE, kernels.measure),
    "training": (training.TITLE, training.measure),
    "step-cost": (step_cost.TITLE, step_cost.measure),
    "sizes": (sizes.TITLE, sizes.measure),
    "tiles": (tiles.OVERHEAD_TITLE, tiles.measure_overhead),
    "adapters": (tiles.ADAPTERS_TITLE, tiles.measure_adapters),
    "steps": (steps.TITLE, steps.measure),
    "startup": (startup.TITLE, startup.measure),
}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and no repeats: tries the benchmark"
    )
    parser.add_argument("--sizes", nargs="+", type=float, metavar="MP", default=[])
    parser.add_argument(
        "--compile", action="store_true", help="compare steps with those of a compiled UNet too"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="where to measure; by default on a GPU if any"
    )
    parser.add_argument("--out", type=Path, help="folder for the report and its plots")
    return parser.parse_args(arguments)


def hide_gpus() -> None:
    """Keeps this process, and those that it starts, to the CPU."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.environ[name] = ""


def main() -> None:
    """Runs the benchmarks."""
    options = parse_options()
    logging.basicConfig(level=logging.WARNING)
    if options.device == "cpu":
        hide_gpus()
    elif options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device")
    use_comfyui()
    done = []
    for name, (title, measure) in SECTIONS.items():
        if name not in options.only:
            continue
        print(f"{title} ...", flush=True)
        further = {"sizes": {"sizes": options.sizes}, "kernels": {"compiled": options.compile}}
        done.append(measure(quick=options.quick, **further.get(name, {})))
        print(f"{done[-1].text}\n", flush=True)
    results = (options.out or REPO / "benchmarks") / "RESULTS.md"
    images = options.out or REPO / "docs" / "images"
    write_report(done, [title for title, _ in SECTIONS.values()], results, images)
    print(f"Written: {results}")


if __name__ == "__main__":
    main()
