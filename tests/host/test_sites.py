"""The blocks of UNets at which restorers and adapters work."""

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from tiny_models import UNET, random_restorer, tiny_unet

from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.sites import DIGESTED, check_fit, find_sft_sites, unet_digests


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resblock_updown": True}, "uses updown"),
        ({"use_scale_shift_norm": True}, "uses use_scale_shift_norm"),
    ],
)
def test_unets_whose_blocks_cannot_be_split_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(PFStorerError, match=reason):
        find_sft_sites(UNetModel(**{**UNET, **changes}))


@pytest.mark.parametrize("trait", ["exchange_temb_dims", "skip_t_emb"])
def test_blocks_of_other_kinds_are_refused(trait: str) -> None:
    unet = tiny_unet()
    setattr(unet.middle_block[0], trait, True)
    with pytest.raises(
        PFStorerError, match=f"middle_block.0 in the UNet of the MODEL uses {trait}"
    ):
        find_sft_sites(unet)


def test_video_unets_are_refused() -> None:
    video = UNetModel(
        **UNET, use_temporal_resblock=True, merge_strategy="fixed", video_kernel_size=[3, 1, 1]
    )
    with pytest.raises(PFStorerError, match="is a video block"):
        find_sft_sites(video)


def test_a_diffusion_transformer_is_refused() -> None:
    with pytest.raises(PFStorerError, match="is a Linear, but a restorer needs the UNet"):
        find_sft_sites(torch.nn.Linear(1, 1))


def test_a_restorer_for_another_unet_is_refused_by_name() -> None:
    wide = random_restorer(tiny_unet(model_channels=64))
    with pytest.raises(PFStorerError, match=r"'tiny' has 64 channels .* UNet of 'x.ckpt' has 32"):
        check_fit(tiny_unet(), wide, "'x.ckpt'")
    deep = {"channel_mult": [1, 2, 2], "transformer_depth": [0, 1, 0]}
    deep |= {"transformer_depth_output": [0, 0, 1, 1, 0, 0]}
    with pytest.raises(PFStorerError, match=r"for input_blocks\.5\.0, which the UNet of 'x.ckpt'"):
        check_fit(tiny_unet(), random_restorer(tiny_unet(**deep)), "'x.ckpt'")
    with pytest.raises(PFStorerError, match=r"has 2 levels, too few for input_blocks\.5"):
        check_fit(tiny_unet(**deep), random_restorer(tiny_unet(**deep)))


def test_a_digest_does_not_depend_on_the_type_that_is_loaded() -> None:
    """An adapter fits the same checkpoint in any type, one of an earlier version as well."""
    weights = {name: torch.randn(64) for name in DIGESTED}
    digests = unet_digests(weights)
    assert unet_digests({name: weight.half() for name, weight in weights.items()})[0] == digests[0]
    for load_type in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        rounded = {name: weight.to(load_type) for name, weight in weights.items()}
        assert unet_digests(rounded)[0] in digests  # as earlier versions took it
