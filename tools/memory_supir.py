"""Counts what SUPIR of ComfyUI's core takes with Stable Diffusion XL, with an adapter and without.

    python tools/memory_supir.py

in ComfyUI's environment; neither a GPU nor weights are needed. Memory is counted as in
`memory_table.py`, operations that a GPU has to start as in the benchmarks, both on the true shapes.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import repository  # noqa: F401
import torch
from counted_memory import CELL, Networks, adapter_of, fake_gpu, unet_pass, weights
from in_process import use_comfyui
from memory_table import TRAINED_COPIES, Row, table
from setup_host import REPO

sys.path.append(str(REPO / "benchmarks"))
CONTEXT, POOLED = 2048, 2816  # widths of Stable Diffusion XL's text features
UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "num_head_channels": 64,
    "num_heads": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": CONTEXT,
    "num_classes": "sequential",
    "adm_in_channels": POOLED,
    "legacy": False,
}
SIZES = (512, 1024)  # px
MIB = 2**20


def supir_networks(dtype: torch.dtype, device: str, trained: bool) -> Networks:
    """Builds Stable Diffusion XL, SUPIR and an adapter; a trained adapter is float32.

    SUPIR has one type, which is that of autocast in a training.
    """
    import comfy.ops
    from comfy.ldm.supir.supir_modules import SUPIR

    from pfstorer_core.host.load.unet import build_unet
    from pfstorer_core.host.patch.supir import TrainableSupir
    from pfstorer_core.restorers.info import RestorerInfo

    unet = build_unet(UNET, dtype, device).requires_grad_(False)
    kind = torch.bfloat16 if trained else dtype
    network = SUPIR(device=device, dtype=kind, operations=comfy.ops.disable_weight_init)
    restorer = TrainableSupir(RestorerInfo("SUPIR", None, None, "", None), network)
    adapter = adapter_of(unet, CONTEXT, torch.float32 if trained else dtype, trained)
    return Networks(unet, restorer.requires_grad_(False), adapter, CONTEXT, POOLED)


def restoring_rows() -> list[Row]:
    """Counts restorations by SUPIR alone and with an adapter."""
    rows = []
    with torch.no_grad(), fake_gpu(False):
        nets = supir_networks(torch.float16, "cuda", trained=False)
        for size in SIZES:
            for batch in (1, 2):
                for personalized in (False, True):
                    name = f"restore {size} px, cfg {'1' if batch == 1 else 'above 1'}"
                    fixed = weights(nets.unet, nets.restorer)
                    fixed += weights(nets.adapter) if personalized else 0
                    peak = unet_pass(nets, batch, size // CELL, personalized=personalized).peak
                    who = "with an adapter" if personalized else "SUPIR alone"
                    rows.append(Row(f"{name}: {who}", fixed, peak))
    return rows


def training_rows() -> list[Row]:
    """Counts trainings with regularizer and a reference."""
    rows = []
    for size in SIZES:
        for batch in (1, 4):
            for checkpoint in (False, True):
                with fake_gpu(True):
                    nets = supir_networks(torch.float16, "cuda", trained=True)
                    given = nets, 2 * batch, size // CELL  # the regularizer doubles the batch
                    plain = unet_pass(*given, reference=True)
                    passing: float = plain.kept
                    if checkpoint:
                        again = unet_pass(*given, reference=True, checkpoint=True)
                        passing = again.kept + plain.largest_part
                    fixed = weights(nets.unet, nets.restorer)
                    fixed += TRAINED_COPIES * weights(nets.adapter)
                name = f"train at {size} px, batch {batch}{', checkpointing' if checkpoint else ''}"
                rows.append(Row(name, fixed, passing))
    return rows


def operations() -> dict[str, int]:
    """Returns what a guided step of SUPIR starts on a GPU, with nothing kept between steps."""
    from counting import launches

    from pfstorer_core.host.patch.applied import AppliedIdentity
    from pfstorer_core.host.patch.bare_unet import restorer_options

    nets = supir_networks(torch.float16, "meta", trained=False)
    place: dict[str, Any] = {"dtype": torch.float16, "device": "meta"}
    x, lq = torch.zeros(2, 4, 64, 64, **place), torch.zeros(2, 4, 64, 64, **place)
    context, y = torch.zeros(2, 77, CONTEXT, **place), torch.zeros(2, POOLED, **place)
    timesteps = torch.zeros(2, device="meta")
    counts = {}
    with torch.no_grad():
        for name, people in (("SUPIR alone", []), ("with an adapter", [nets.adapter])):
            identities = [AppliedIdentity(adapter) for adapter in people]
            options = restorer_options(nets.unet, nets.restorer, lq, identities)
            counts[name] = launches(
                lambda o=options: nets.unet(x, timesteps, context, y, transformer_options=o)
            )
    return counts


def added(rows: list[Row]) -> str:
    """Returns what an adapter adds to restorations, whose rows go in pairs, in MiB."""
    lines = []
    for alone, personalized in zip(rows[::2], rows[1::2], strict=True):
        weight = (personalized.fixed - alone.fixed) / MIB
        before, after = alone.passing / MIB, personalized.passing / MIB
        name = alone.name.partition(":")[0]
        lines.append(
            f"{name}: {weight:.0f} MiB of weights; activations {before:.0f} -> {after:.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    use_comfyui()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True  # as on a GPU
    with fake_gpu(False):
        nets = supir_networks(torch.float16, "cuda", trained=False)
        parts = {"UNet": nets.unet, "SUPIR": nets.restorer, "adapter": nets.adapter}
        counts = {name: sum(p.numel() for p in x.parameters()) / 1e6 for name, x in parts.items()}
    print("; ".join(f"{name} {count:.1f} M parameters" for name, count in counts.items()))
    started = operations()
    print("; ".join(f"{name}: {count} operations a step" for name, count in started.items()))
    restoring = restoring_rows()
    print(f"\nAn adapter adds:\n{added(restoring)}\n")
    print(table([*restoring, *training_rows()]))


if __name__ == "__main__":
    main()
