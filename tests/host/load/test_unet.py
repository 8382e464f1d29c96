import torch
from tiny_models import UNET, latents, tiny_unet


def test_a_fresh_unet_predicts_zero_and_is_whole() -> None:
    unet = tiny_unet()
    out = unet(latents(), torch.tensor([5.0]), torch.randn(1, 3, UNET["context_dim"]))
    assert not out.any()
    assert all(parameter.isfinite().all() for parameter in unet.parameters())
