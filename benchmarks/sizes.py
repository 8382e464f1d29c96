"""Time per megapixel and peak memory by picture size; each size has a process of its own.

Run as a program, it restores one picture and prints what that took as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from report import Plot, Section, table
from timing import fitting_side, load_mini, random_picture, timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Picture sizes"
SIZES = (0.25, 1.0, 4.0, 16.0)  # megapixels of 2**20
SMALL_SIZES = (0.015, 0.06)
REFERENCE = 1.0  # megapixels, to which the others are compared
REPEATED = 1.5  # megapixels up to which a process restores several times
SCALE = 4
OVERLAP = 0.25
BATCH = 4  # tiles at once
STEPS = 2
MIB = 2**20


@dataclass(frozen=True)
class Run:
    """What one process measured.

    Args:
        side: of the output, in pixels.
        seconds: of each restoration.
        covered: area of all tiles over that of the picture.
        resting: MiB of memory before the first restoration.
        peak: most MiB during it.
        pictures: MiB of the buffers that any restoration of this size has to hold.
    """

    side: int
    seconds: list[float]
    covered: float
    resting: float
    peak: float
    pictures: float


class Measured:
    """What the processes of all sizes measured.

    Args:
        runs: by size in megapixels, ascending.
    """

    def __init__(self, runs: dict[float, list[Run]]) -> None:
        self.runs = runs
        self.sizes = list(runs)
        self.reference = min(runs, key=lambda size: abs(size - REFERENCE))

    def per_megapixel(self, size: float) -> float:
        """Returns the median of the seconds."""
        # the first restoration of a process also warms it up
        times = [t for run in self.runs[size] for t in (run.seconds[1:] or run.seconds)]
        return median(times) * MIB / self.runs[size][0].side ** 2

    def aside(self, size: float, resting: bool) -> float:
        """Returns the peak without the buffers of pictures, and without what is `resting`."""
        return median(
            run.peak - run.pictures - (run.resting if resting else 0) for run in self.runs[size]
        )

    def times(self, size: float) -> list[str]:
        """Returns a row of the table of times."""
        first = self.runs[size][0]
        seconds, base = self.per_megapixel(size), self.per_megapixel(self.reference)
        base_covered = self.runs[self.reference][0].covered
        return [
            f"{size:g}",
            f"{first.side} x {first.side}",
            f"{seconds:.2f}",
            f"{seconds / base:.3f}",
            f"{first.covered:.3f}",
            f"{seconds / first.covered / (base / base_covered):.3f}",
        ]

    def memories(self, size: float) -> list[str]:
        """Returns a row of the table of memory."""
        peak, resting = (
            median(getattr(run, name) for run in self.runs[size]) for name in ("peak", "resting")
        )
        cells = [f"{size:g}", f"{peak:.0f}", f"{resting:.0f}", f"{self.runs[size][0].pictures:.0f}"]
        for without in (False, True):
            aside = self.aside(size, without)
            cells += [f"{aside:.0f}", f"{aside / self.aside(self.reference, without):.3f}"]
        return cells

    def growth(self) -> str:
        """Returns a paragraph on the way from the smallest to the largest size."""
        if len(self.sizes) < 2:
            return ""
        small, large = self.runs[self.sizes[0]][0], self.runs[self.sizes[-1]][0]
        pixels = large.side**2 - small.side**2
        return (
            f"\n\nFrom the smallest to the largest size the peak grows by "
            f"{(large.peak - small.peak) * MIB / pixels:.1f} MiB per MP and the counted buffers by "
            f"{(large.pictures - small.pictures) * MIB / pixels:.1f}; a picture of the output's "
            "size takes 12."
        )

    def draw(self, axes: Sequence[Axes]) -> None:
        """Draws both panels of the plot."""
        sizes = self.sizes
        axes[0].plot(sizes, [self.per_megapixel(size) for size in sizes], "o-")
        axes[0].set(ylabel="seconds per megapixel")
        peaks = [median(run.peak for run in self.runs[size]) for size in sizes]
        axes[1].plot(sizes, peaks, "o-", label="peak")
        asides = [self.aside(size, False) for size in sizes]
        axes[1].plot(sizes, asides, "s-", label="buffers aside")
        axes[1].set(ylabel="MiB")
        axes[1].legend(fontsize=8, loc="lower right")
        for axis in axes:
            axis.set(xscale="log", xlabel="megapixels", ylim=(0, 1.1 * axis.get_ylim()[1]))
            axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axis.minorticks_off()


def measure(quick: bool = False, sizes: Sequence[float] = ()) -> Section:
    """Restores pictures from small to large and back, the largest once."""
    sizes = sorted(sizes or (SMALL_SIZES if quick else SIZES))
    order = sizes if quick else [*sizes, *reversed(sizes[:-1])]
    runs: dict[float, list[Run]] = {size: [] for size in sizes}
    for size in order:
        runs[size].append(_run_process(size, 1 if quick or size > REPEATED else 3))
    measured = Measured(runs)
    of_reference = f"that at {measured.reference:g} MP"
    times = ["MP", "output", "seconds per MP", f"time per MP / {of_reference}"]
    times += ["covered area / picture area", f"time per covered MP / {of_reference}"]
    memories = ["MP", "peak", "resting", "picture buffers"]
    memories += ["peak without buffers", f"/ {of_reference}"]
    memories += ["peak above resting without buffers", f"/ {of_reference}"]
    if torch.cuda.is_available():
        where, buffers = "GPU memory", "four latents (LQ latent, noise, sample, denoised sample)"
    else:
        where = "memory of the process"
        buffers = (
            "input, input scaled to the output's size, output and four latents (LQ latent, noise, "
            "sample, denoised sample) in float32"
        )
    text = (
        f"Tiled Restore as a whole, with VAE and colour fix (wavelet): {SCALE}x with the mini "
        f"restorer, {STEPS} steps, tiles of the restorer's own size that overlap by "
        f"{OVERLAP:.0%}, {BATCH} at once at every size. A megapixel (MP) is 2^20 pixels of the "
        "output; sides are those near the size that tiles fill without moving the last one back. "
        "Every size runs in a process of its own, from small to large and back, the largest "
        "once.\n\n"
        + table(times, [measured.times(size) for size in sizes])
        + f"\n\nPeak {where} in MiB during a process's first restoration. Picture buffers are "
        f"counted from shapes: {buffers}. Resting is what is held after loading; it holds ComfyUI, "
        "torch and the model, so the peak above it is the stricter measure.\n\n"
        + table(memories, [measured.memories(size) for size in sizes])
        + measured.growth()
    )
    return Section(TITLE, text, Plot("sizes", measured.draw, panels=2))


def _run_process(size: float, repeats: int) -> Run:
    command = [sys.executable, __file__, "--size", str(size), "--repeats", str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the restoration of {size:g} megapixels failed; see above")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _restore(size: float, repeats: int) -> Run:
    from tiles import tile_windows

    mini = load_mini()
    side = fitting_side(round(math.sqrt(size * MIB)), mini.tile, OVERLAP)
    windows = tile_windows(mini, side, OVERLAP)
    channels = mini.vae.latent_channels
    latents = 4 * 4 * channels * (side // mini.cell) ** 2
    pictures = 4 * 3 * (2 * side**2 + (side // SCALE) ** 2)
    # on a GPU, pictures stay in main memory
    buffers = latents if torch.cuda.is_available() else latents + pictures

    def restore() -> None:
        mini.restore(
            picture,
            scale=SCALE,
            steps=STEPS,
            tile_size=mini.tile,
            overlap=OVERLAP,
            tile_batch=BATCH,
            color_fix="wavelet",
        )

    resting = _memory()
    picture = random_picture(side // SCALE, side // SCALE)
    _forget_peak()
    seconds = [timed(restore)()]
    peak = _peak_memory()
    seconds += [timed(restore)() for _ in range(repeats - 1)]
    covered = sum(h * w for h, w in (tile.size for tile in windows)) / side**2
    return Run(side, seconds, covered, resting / MIB, peak / MIB, buffers / MIB)


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _process_memory("VmRSS")


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _process_memory("VmHWM")


def _process_memory(name: str) -> float:
    # not getrusage: its maximum includes what the parent held when it started this process
    status = Path("/proc/self/status")
    if not status.is_file():
        sys.exit("error: peak memory is measured on Linux or a CUDA GPU; leave this section out")
    line = next(x for x in status.read_text(encoding="ascii").splitlines() if x.startswith(name))
    return 1024.0 * int(line.split()[1])


def main() -> None:
    """Restores a picture and prints a `Run`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=float, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    from in_process import use_comfyui

    use_comfyui()
    print(json.dumps(vars(_restore(options.size, options.repeats))))


if __name__ == "__main__":
    main()
