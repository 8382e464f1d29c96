"""The benchmarks as a whole, small: the report with its tables and plots."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from setup_host import REPO

TITLES = [
    "Step cost on the shape of Stable Diffusion 2.1",
    "Picture sizes",
    "Tiles against the area they cover",
    "Adapters in tiles",
    "Steps and encoder interval",
]


def benchmark(out: Path, *options: str) -> str:
    command = [sys.executable, str(REPO / "benchmarks" / "run.py"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return (out / "RESULTS.md").read_text(encoding="utf-8")


def tables(report: str, title: str) -> list[list[list[str]]]:
    """The cells of each table of a section, without the lines under the headers."""
    section = report.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)
    rows = [[[c.strip() for c in x[1:-1].split("|")] for x in t.splitlines()] for t in found]
    return [[table[0], *table[2:]] for table in rows]


@pytest.mark.slow
def test_sections_join_in_one_report(tmp_path: Path) -> None:
    benchmark(tmp_path, "--quick", "--only", "sizes", "--sizes", "0.06")
    report = benchmark(tmp_path, "--quick", "--only", "step-cost", "tiles", "adapters", "steps")
    assert re.findall(r"^## (.*)$", report, re.MULTILINE) == TITLES

    (steps,) = tables(report, TITLES[0])
    seconds = {row[0]: float(row[1]) for row in steps[1:]}
    bare, restorer = seconds["guided step, bare UNet"], seconds["guided step, restorer"]
    rounding = 0.001 * (1 / bare + 1 / restorer)  # the table shows milliseconds
    assert float(steps[2][3]) == pytest.approx(restorer / bare, rel=rounding)

    (_, times), (_, memory) = tables(report, TITLES[1])
    assert times[1] == "224 x 224" and times[3] == "1.000"
    assert float(times[4]) == pytest.approx((256 / 224) ** 2, abs=1e-3)
    peak, resting, buffers, aside = (float(cell) for cell in memory[1:5])
    # of a process there is always some, of a GPU none before the first restoration
    assert peak > resting >= (0 if torch.cuda.is_available() else 100)
    assert aside == pytest.approx(peak - buffers, abs=2)

    (overheads,) = tables(report, TITLES[2])
    assert [row[:2] for row in overheads[1:]] == [["0%", "4"], ["25%", "4"], ["50%", "9"]]
    (adapters,) = tables(report, TITLES[3])
    assert [row[1] for row in adapters[1:]] == [f"{n} of 4" for n in (0, 4, 4, 4, 4, 4)]
    by_steps, by_interval = tables(report, TITLES[4])
    assert by_steps[-1][2] == "1.000" and len(by_steps) > 2
    assert by_interval[1][2] == "1.000" and len(by_interval) == 4

    for name in re.findall(r"\]\((.*\.png)\)", report):
        with Image.open(tmp_path / name) as plot:
            assert min(plot.size) > 200
    assert len(list(tmp_path.glob("*.png"))) == 3
