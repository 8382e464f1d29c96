"""The UNet with SFT inside ComfyUI's own code, against StableSR's."""

import pytest
import torch
from golden_weights import TOLERANCE, Goldens, relative_l2
from tiny_models import golden_model

from pfstorer_core.host.patch.bare_unet import restorer_options
from pfstorer_core.host.sites import find_sft_sites

NAMES = [
    "dual_unet_tiny2",
    "dual_unet_tiny4",
    pytest.param("dual_unet_full", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens.find()


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, goldens: Goldens):
    return *golden_model(goldens, request.param), goldens.tensors(request.param), request.param


def inputs(tensors: dict[str, torch.Tensor], case: str) -> tuple[torch.Tensor, ...]:
    """Returns x, timesteps, context and LQ latent of a case; a guided batch is made of blocks."""
    x, timesteps = tensors[f"{case}.x"], tensors[f"{case}.timesteps"]
    if f"{case}.context" in tensors:
        return x, timesteps, tensors[f"{case}.context"], tensors[f"{case}.lq_latent"]
    items = x.shape[0]
    halves = [
        tensors[f"{case}.context_{half}"].expand(items, -1, -1) for half in ("uncond", "cond")
    ]
    return x.repeat(2, 1, 1, 1), timesteps, torch.cat(halves), tensors[f"{case}.lq_latent"]


def test_every_case_of_the_unet_with_sft(golden, goldens: Goldens) -> None:
    unet, restorer, tensors, name = golden
    for case in (case["case"] for case in goldens.items[name]["cases"]):
        x, timesteps, context, lq_latent = inputs(tensors, case)
        options = restorer_options(unet, restorer, lq_latent)
        with torch.inference_mode():
            out = unet(x, timesteps.float(), context, transformer_options=options)
            plain = unet(x, timesteps.float(), context)
        assert relative_l2(out, tensors[f"{case}.out"]) <= TOLERANCE, case
        assert relative_l2(plain, tensors[f"{case}.out_without_sft"]) <= TOLERANCE, case


def test_every_site_of_the_reference_is_found_at_its_level(golden, goldens: Goldens) -> None:
    unet, restorer, tensors, name = golden
    sites = find_sft_sites(unet)
    assert list(sites) == goldens.items[name]["spade_blocks"]
    width = tensors["a.x"].shape[-1]
    lq_latent = tensors["a.lq_latent"]
    features = restorer(lq_latent, tensors["a.timesteps"].float())
    for level in sorted({level for _, level in sites.values()}):
        assert features[level].shape[-1] == width / 2**level
        assert relative_l2(features[level], tensors[f"a.struct_cond.level{level}"]) <= TOLERANCE


def test_every_block_of_the_reference(goldens: Goldens) -> None:
    unet, restorer = golden_model(goldens, "dual_unet_tiny4")
    tensors = goldens.tensors("dual_unet_tiny4")
    taps = {key.removeprefix("a.tap."): value for key, value in tensors.items() if ".tap." in key}
    outputs: dict[str, torch.Tensor] = {}
    # Core's own hooks see a block's output without the plugin's help.
    names = {"input": "input_blocks.{}", "output": "output_blocks.{}"}

    def after_input(h: torch.Tensor, options: dict) -> torch.Tensor:
        outputs[names["input"].format(options["block"][1])] = h
        return h

    def before_output(h: torch.Tensor, skip: torch.Tensor, options: dict):
        number = options["block"][1]
        outputs[f"output_blocks.{number - 1}" if number else "middle_block"] = h
        return h, skip

    options = restorer_options(unet, restorer, tensors["a.lq_latent"])
    options["patches"]["input_block_patch"] = [after_input]
    options["patches"]["output_block_patch"] = [before_output]
    unet(
        tensors["a.x"],
        tensors["a.timesteps"].float(),
        tensors["a.context"],
        transformer_options=options,
    )
    # No hook lies after the last block.
    assert set(taps) - set(outputs) == {"output_blocks.11"}
    for name, value in outputs.items():
        assert relative_l2(value, taps[name]) <= TOLERANCE, name
