"""Steps of an identity training on the shape of Stable Diffusion 2.1, with random weights."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from networks import TOKENS, Networks
from report import Section, table
from timing import synchronise

TITLE = "Steps of an identity training"
STEPS, FEW_STEPS = 60, 4
WARM = 20  # steps before the clock starts: captures, and the choice of kernels
SIDE, SMALL_SIDE = 64, 8  # latent pixels: 512 pixels


def measure(quick: bool = False) -> Section:
    """Times steps as `train_identity` takes them, from drawn latents to averaged weights."""
    gpu = torch.cuda.is_available()
    precision = "bf16" if gpu else "no"
    side = SIDE if gpu and not quick else SMALL_SIDE
    kinds: list[tuple[str, dict[str, Any], bool]] = [
        ("batch 4, captured", {}, True),
        ("batch 4", {}, False),
        ("batch 1, captured", {"batch": 1}, True),
        ("batch 4, checkpointing", {"checkpointing": True}, True),
    ]
    rows = []
    for name, settings, capture in kinds if gpu else kinds[1:2]:
        seconds, first, peak = _train(precision, side, settings, capture, quick)
        rows.append([name, f"{1000 * seconds:.0f}", f"{first:.1f}", f"{peak:.1f}" if gpu else ""])
        print(rows[-1], flush=True)
    rows.append(_views(quick))
    text = (
        f"Random weights, latent {side} x {side}, {precision}; a step has as many latents again "
        "without an LQ latent, a reference in three of ten, Muon and averages. The first step "
        "captures where that is on.\n\n"
        + table(["", "ms a step", "first step, s", "peak, GiB"], rows)
    )
    return Section(TITLE, text)


def _train(
    precision: str, side: int, settings: dict[str, Any], capture: bool, quick: bool
) -> tuple[float, float, float]:
    """Returns the median seconds of a step, those of the first, and GiB of GPU memory."""
    from pfstorer_core.host.train.network import PersonalizedNetwork, cast_ahead
    from pfstorer_core.training.identity import IdentityTrainingConfig, identity_objective
    from pfstorer_core.training.loop import fit
    from pfstorer_core.training.losses import noise_schedule
    from pfstorer_core.training.pool import LatentPool

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = FEW_STEPS if quick else STEPS
    config = IdentityTrainingConfig(steps=steps, **settings)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    networks = Networks.build(device, dtype, small=quick)
    for frozen in (networks.unet, networks.restorer):
        cast_ahead(frozen, precision)
    network = PersonalizedNetwork(
        networks.unet,
        networks.restorer,
        torch.randn(TOKENS, networks.context_dim, device=device),
        networks.adapters[0].float(),
        checkpoint=config.checkpointing,
    )
    latents = torch.randn(2, 64, 4, side, side).half()
    objective = identity_objective(
        LatentPool(latents[0], latents[1]), noise_schedule("v_prediction"), config
    )
    loop = config.loop(precision)
    loop = dataclasses.replace(loop, capture=loop.capture and capture, save_every=0)
    starts: list[float] = []

    def timed(model: Any, generator: torch.Generator) -> Any:
        if len(starts) < 2:  # the first step, which captures
            synchronise()
        starts.append(time.perf_counter())
        return objective(model, generator)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        fit(network, timed, loop, Path(folder), device=device, log_to_files=False)
        synchronise()
    peak = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else 0.0
    warm = min(WARM, steps // 2)
    # a host that runs ahead waits at every look, so that single steps say nothing
    whole = (time.perf_counter() - starts[warm]) / (steps - warm)
    return whole, starts[1] - starts[0], peak


def _views(quick: bool) -> list[str]:
    from pfstorer_core.training.identity import IdentityTrainingConfig, build_photo_pool
    from pfstorer_core.training.view_pool import cores

    count, size = (2, 64) if quick else (8 * cores(), 512)
    config = IdentityTrainingConfig(views_per_photo=count)
    photo = torch.rand(3, 2 * size, 2 * size, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    build_photo_pool([photo], size, lambda pictures: pictures[:, :, ::8, ::8], config)
    seconds = (time.perf_counter() - began) / count
    return [f"a view, {size} pixels, {cores()} cores", f"{1000 * seconds:.0f}", "", ""]
