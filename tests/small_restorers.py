"""Weights of a small restorer in all layouts that there are, for tests of its files."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
from golden_weights import fill
from torch import Tensor

from pfstorer_core.restorers.stablesr.encoder import EncoderConfig

UNET = "model.diffusion_model."
TINY = EncoderConfig(model_channels=32, out_channels=64)
SITES = {"input_blocks.1.0": 64, "input_blocks.10.0": 128, "middle_block.2": 128}
SITES |= {"output_blocks.2.0": 96}
OTHER_WEIGHTS = {
    UNET + "input_blocks.1.0.in_layers.2.weight": (64, 64, 3, 3),
    UNET + "time_embed.0.weight": (8, 8),
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "cond_stage_model.model.ln_final.weight": (8,),
    "model_ema.diffusion_modelinput_blocks10spademlp_gammaweight": (64, 32, 3, 3),
    "model_ema.structcond_stage_modeltime_embed0weight": (8, 8),
    "betas": (1000,),
}
Weights = dict[str, Tensor]


def without_unet_prefix(weights: Weights) -> Weights:
    return {key.removeprefix(UNET): value for key, value in weights.items()}


def official(weights: Weights) -> dict[str, Any]:
    return {
        "state_dict": weights | fill(OTHER_WEIGHTS),
        "epoch": 117,
        "global_step": 16_500,
        "pytorch-lightning_version": "1.4.2",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
    }


def bundled(weights: Weights) -> tuple[Weights, dict[str, str]]:
    shapes = {"cond_stage_model.prompt": (4, 8)}
    shapes |= {key: OTHER_WEIGHTS[key] for key in OTHER_WEIGHTS if key.startswith((UNET, "first"))}
    return weights | fill(shapes), description(bundled={"unet": {"model_channels": 32}})


def description(**changes: Any) -> dict[str, str]:
    header = {
        "format_version": 1,
        "name": "small",
        "prediction_type": "v_prediction",
        "encoder": dataclasses.asdict(TINY),
        "license": "GPL-3.0-or-later",
        "bundled": None,
    }
    return {"pfstorer_restorer": json.dumps(header | changes)}


LAYOUTS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "official": official,
    "extracted": lambda weights: dict(weights),
    "extracted without prefix": without_unet_prefix,
    "extracted and wrapped": lambda weights: {"state_dict": without_unet_prefix(weights)},
}
