"""Estimates the GPU memory that restoring and training take with Stable Diffusion 2.1.

    python tools/memory_table.py

in ComfyUI's environment; neither a GPU nor weights are needed. The networks are built in their true
shape on PyTorch's fake tensors, which have sizes but no values, and every tensor that a step would
hold is counted. Prints Markdown. `--check 32` runs one real training step on the CPU, on latents of
that side, and compares it with what was foretold.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import repository  # noqa: F401
import torch
from counted_memory import CELL, decoder, fake_gpu, networks, tensors, unet_pass, weights
from in_process import use_comfyui
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30
BUDGETS = (
    6,
    8,
    12,
    16,
    24,
)  # GB on the box, of which ComfyUI's own start and the desktop take some
OTHER = 1.0  # GiB: CUDA's context, the kernels' workspaces, what else is on the screen
REAL = 1.3  # peak of a real step over what is counted: 1.29 by --check 64, 1.4 by --check 32
COMFORT = 0.9  # share of a card up to which a step fits well
# An adapter in training: weights, gradients, two of the optimizer at most, average, its spare.
TRAINED_COPIES = 6


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        name: what is done.
        fixed: bytes of weights, gradients, optimizer and averages.
        passing: bytes of activations.
    """

    name: str
    fixed: float
    passing: float

    @property
    def total(self) -> float:
        """GiB on the card, with what is not PyTorch's."""
        return (self.fixed + REAL * self.passing) / GIB + OTHER

    def fits(self, budget: float) -> str:
        """Says whether a card of so many GB has room for it."""
        if self.total <= COMFORT * budget:
            return "yes"
        return "barely" if self.total <= budget else "no"


def restoring_rows() -> list[Row]:
    """Counts restorations without guidance; decoding comes after the sampling, not beside it."""
    rows = []
    with torch.no_grad(), fake_gpu(False):
        nets = networks(torch.float16, "cuda", trained=False)
        fixed = weights(nets.unet, nets.restorer, nets.adapter)
        for name, pixels, batch in (
            ("restore 512 px", 512, 1),
            ("restore 512 px, cfg above 1", 512, 2),
            ("restore 1024 px in one tile", 1024, 1),
            ("restore 2048 px in tiles of 640 px, one at once", 640, 1),
            ("restore 2048 px in tiles of 640 px, five at once", 640, 5),
        ):
            rows.append(Row(name, fixed, unet_pass(nets, batch, pixels // CELL).peak))
    for name, pixels in (("decode 512 px", 512), ("decode 1024 px, or a tile of it", 1024)):
        peak, fixed = decoder(pixels // CELL, torch.bfloat16)
        rows.append(Row(f"{name} (VAE in bf16)", fixed, peak))
    return rows


def training_rows() -> list[Row]:
    """Counts trainings at 512 px with regularizer and a reference."""
    rows = []
    side = 512 // CELL
    for checkpoint in (False, True):
        for batch in (4, 2, 1):
            with fake_gpu(True):
                nets = networks(torch.float16, "cuda", trained=True)
                # the regularizer doubles the batch
                kept = unet_pass(nets, 2 * batch, side, reference=True)
                passing: float = kept.kept
                if checkpoint:
                    again = unet_pass(nets, 2 * batch, side, reference=True, checkpoint=True)
                    passing = again.kept + kept.largest_part
                fixed = weights(nets.unet, nets.restorer) + TRAINED_COPIES * weights(nets.adapter)
            name = f"train at 512 px, batch {batch}{', checkpointing' if checkpoint else ''}"
            rows.append(Row(name, fixed, passing))
    return rows


def table(rows: list[Row]) -> str:
    """Returns the Markdown table."""
    budgets = " | ".join(f"{budget} GB" for budget in BUDGETS)
    lines = [
        f"| | weights and the like | activations | in all | {budgets} |",
        "|---" * (4 + len(BUDGETS)) + "|",
    ]
    for row in rows:
        fits = (row.fits(budget) for budget in BUDGETS)
        lines.append(
            f"| {row.name} | {row.fixed / GIB:.1f} | {row.passing / GIB:.1f} | "
            f"**{row.total:.1f} GiB** | {' | '.join(fits)} |"
        )
    return "\n".join(lines)


def check(side: int, batch: int) -> None:
    """Runs one real training step in float32 on the CPU and compares it with what was foretold.

    Args:
        side: of the latents.
        batch: latents, those of the regularizer included.
    """
    with FakeTensorMode():
        nets = networks(torch.float32, "cpu", trained=True)
        foretold = unet_pass(nets, batch, side, reference=True, backward=True)
    nets = networks(torch.float32, "cpu", trained=True)
    with torch.no_grad():
        for parameter in tensors(nets.unet, nets.restorer, nets.adapter):
            parameter.normal_(std=0.02)  # memory that was never written is not resident
    resting = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    unet_pass(nets, batch, side, reference=True, backward=True)
    grown = _resident("VmHWM") - resting
    print(
        f"One training step in float32 on the CPU, {batch} latents of {side} x {side}: foretold "
        f"{foretold.kept / GIB:.2f} GiB after the forward pass and {foretold.peak / GIB:.2f} GiB "
        f"at its peak in the backward pass ({foretold.peak / foretold.kept:.2f} times); the real "
        f"process grew by {grown / GIB:.2f} GiB ({grown / foretold.peak:.2f} times)."
    )


def _resident(which: str) -> int:
    """Returns the process's resident bytes: VmRSS now, VmHWM at most (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Prints the table, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", type=int, metavar="SIDE", help="one real step on latents of this side; Linux"
    )
    use_comfyui()
    side = parser.parse_args().check
    if side:
        check(side, batch=2)
        return
    operations = FlopCounterMode(display=False)
    with torch.no_grad(), fake_gpu(False):
        nets = networks(torch.float16, "cuda", trained=False)
        with operations:
            unet_pass(nets, 1, 512 // CELL)
        counts = {
            name: sum(p.numel() for p in module.parameters()) / 1e6
            for name, module in (
                ("UNet", nets.unet),
                ("restorer", nets.restorer),
                ("adapter", nets.adapter),
            )
        }
    print("; ".join(f"{name} {count:.1f} M parameters" for name, count in counts.items()))
    print(f"One pass over a picture of 512 px: {operations.get_total_flops() / 1e12:.2f} TFLOP\n")
    print(table([*restoring_rows(), *training_rows()]))


if __name__ == "__main__":
    main()
