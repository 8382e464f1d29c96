"""A restorer in a bare UNet, as trainings run it."""

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch, attention_split, attention_sub_quad
from tiny_models import UNET, latents, random_restorer, tiny_unet

from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.patch.bare_unet import restorer_options, trainable_attention


def test_gradients_reach_unet_restorer_and_lq_latent() -> None:
    unet = tiny_unet()
    with torch.no_grad():
        for parameter in unet.parameters():  # else zero layers stop the gradients
            parameter.add_(0.01)
    restorer = random_restorer(unet)
    lq_latent = latents(2).requires_grad_()
    options = restorer_options(unet, restorer, lq_latent)
    context = torch.randn(2, 3, UNET["context_dim"])
    out = unet(latents(2, seed=1), torch.tensor([5.0, 700.0]), context, transformer_options=options)
    out.square().mean().backward()
    for module in (unet, restorer):
        assert [n for n, p in module.named_parameters() if p.grad is None] == []
    assert lq_latent.grad.abs().sum() > 0


def test_a_guided_batch_of_the_bare_unet_is_encoded_once() -> None:
    unet, batches = tiny_unet(), []
    restorer = random_restorer(unet)
    restorer.encoder.register_forward_hook(lambda m, args, out: batches.append(args[0].shape[0]))
    options = restorer_options(unet, restorer, latents(2))
    context = torch.randn(4, 3, UNET["context_dim"])
    for timesteps in ([5.0, 9.0, 5.0, 9.0], [5.0, 9.0, 5.0, 8.0]):
        unet(latents(4), torch.tensor(timesteps), context, transformer_options=options)
    assert batches == [2, 4], "blocks of other timesteps cannot share features"
    with pytest.raises(PFStorerError, match="batch of 3 for an LQ latent of 2 items"):
        unet(latents(3), torch.zeros(3), context[:3], transformer_options=options)


def test_a_training_step_compiles_in_one_graph() -> None:
    unet = tiny_unet()
    restorer = random_restorer(unet)

    def step(x, timesteps, context, lq_latent):
        options = restorer_options(unet, restorer, lq_latent)
        return unet(x, timesteps, context, transformer_options=options)

    context = torch.randn(2, 3, UNET["context_dim"])
    args = (latents(2), torch.tensor([5.0, 700.0]), context, latents(2, seed=1))
    explained = torch._dynamo.explain(step)(*args)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.parametrize("chosen", [attention_pytorch, attention_split, attention_sub_quad])
@pytest.mark.parametrize("precision", [None, torch.float32])
def test_trainings_take_attention_with_a_gradient(chosen, precision) -> None:
    """As fine as the host would compute it: Stable Diffusion 2 asks for float32."""
    q, k, v = (torch.randn(2, 16, 8).half().requires_grad_() for _ in range(3))
    found = trainable_attention(chosen, q, k, v, 2, attn_precision=precision)
    finer = precision if precision is not None and chosen is not attention_pytorch else q.dtype
    expected = attention_pytorch(q.to(finer), k.to(finer), v.to(finer), 2).half()
    assert torch.equal(found, expected) and found.dtype == q.dtype
    found.sum().backward()
    assert all(x.grad is not None for x in (q, k, v))
