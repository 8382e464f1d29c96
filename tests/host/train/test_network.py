"""The networks that are trained are those that are sampled."""

import copy
import sys
from typing import Any

import comfy.sample
import pytest
import torch
from setup_host import REPO
from tiny_models import TOKENS, latents, random_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.host.base import RESTORER_KEY, base_of
from pfstorer_core.host.patch.applied import AppliedIdentity
from pfstorer_core.host.patch.bare_unet import restorer_options
from pfstorer_core.host.patch.sampling import SamplingMemory
from pfstorer_core.host.train.from_model import trainable_unet
from pfstorer_core.host.train.network import PersonalizedNetwork, cast_ahead
from pfstorer_core.identities import block
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.training.capture import Captured

sys.path.append(str(REPO / "benchmarks"))
from counting import LaunchCounter


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


def network_of(
    model: Any, adapter: IdentityAdapter, *, checkpoint: bool = False
) -> PersonalizedNetwork:
    (wrapper,) = model.get_wrappers("diffusion_model", RESTORER_KEY)
    return PersonalizedNetwork(
        trainable_unet(model),
        BaseRestorer.from_state_dict(wrapper.restorer.weights()),
        base_of(model).empty_prompt[0][0][0].clone(),
        adapter,
        checkpoint=checkpoint,
    )


def test_checkpointing_changes_no_gradient(loaded) -> None:
    gradients = []
    kept = []
    for checkpoint in (False, True):
        adapter = random_adapter(loaded[0]).requires_grad_(True)
        network = network_of(loaded[0], adapter, checkpoint=checkpoint)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = network(latents(2), torch.tensor([5, 700]), latents(2, seed=1), latents(seed=2))
            loss = out.square().mean()
        forward = sum(sizes)
        loss.backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        kept.append(forward)
    assert set(gradients[0]) == {f"adapter.{n}" for n, _ in adapter.named_parameters()}, (
        "all of the adapter and nothing of the base"
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)
    assert kept[1] < 0.7 * kept[0], "fewer activations are kept"


@pytest.mark.parametrize("referred", [False, True])
def test_the_network_of_the_training_is_the_model_of_the_sampling(loaded, referred: bool) -> None:
    """What is trained is what is applied: the same prediction from both."""
    model = loaded[0]
    adapter = random_adapter(model, config=PersonalizationConfig(tokens=4))
    lq, reference = latents(seed=1), latents(seed=2) if referred else None
    latent_format = model.get_model_object("latent_format")
    applied = host.apply_identity(
        host.condition_on_lq(model, latent_format.process_out(lq)),
        adapter,
        references=None if reference is None else latent_format.process_out(reference),
    )
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(executor, x, timesteps, *args, **kwargs):
        out = executor(x, timesteps, *args, **kwargs)
        seen.append((x, timesteps, out))
        return out

    applied.add_wrapper_with_key("diffusion_model", "test", record)
    prompt = base_of(model).empty_prompt
    assert prompt[0][0].shape[1] == TOKENS
    comfy.sample.sample(
        applied,
        latents(seed=3),
        2,
        1.0,
        "euler",
        "normal",
        prompt,
        prompt,
        latents(seed=3),
        disable_pbar=True,
        seed=0,
    )
    device = seen[0][0].device
    network = network_of(model, adapter).to(device)
    lq, reference = lq.to(device), None if reference is None else reference.to(device)
    assert len(seen) == 2
    with torch.inference_mode():
        for x, timesteps, out in seen:
            expected = network(x, timesteps, lq, reference)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_are_cast_ahead_compute_the_same(loaded) -> None:
    """Bit for bit what autocast casts at each use; norms keep their type."""
    network = network_of(loaded[0], random_adapter(loaded[0]))
    inputs = latents(2), torch.tensor([5, 700]), latents(2, seed=1), latents(seed=2)
    device = next(network.parameters()).device.type
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        expected = network(*inputs)
        for frozen in (network.unet, network.restorer):
            cast_ahead(frozen, "bf16")
        network._memory = SamplingMemory()  # of joined weights
        assert torch.equal(network(*inputs), expected)
    kinds = {p.dtype for p in network.unet.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}
    cast_ahead(network.restorer.float(), "no")
    assert {p.dtype for p in network.restorer.parameters()} == {torch.float32}


def test_a_frozen_restorer_is_joined_once_and_gives_the_same(loaded) -> None:
    network = network_of(loaded[0], random_adapter(loaded[0]))
    inputs = latents(2), torch.tensor([5, 700]), latents(2, seed=1)
    with torch.no_grad():
        joined = network(*inputs)
        assert torch.equal(network(*inputs), joined)
        options = restorer_options(
            network.unet, network.restorer, inputs[2], [AppliedIdentity(network.adapter)]
        )
        context = network.prompt.expand(2, -1, -1)
        plain = network.unet(inputs[0], inputs[1], context, transformer_options=options)
        torch.testing.assert_close(joined, plain, rtol=1e-4, atol=1e-5)
        # what is trained is never kept
        network.adapter.block(network.adapter.sites[0]).out.weight.add_(1.0)
        assert not torch.allclose(network(*inputs), joined)


@pytest.mark.parametrize(
    ("precision", "referred", "checkpoint"),
    [("no", False, False), ("no", True, True), ("bf16", True, False), ("fp16", False, True)],
)
def test_joined_blocks_train_as_the_blocks_do(
    loaded, monkeypatch: pytest.MonkeyPatch, checkpoint: bool, referred: bool, precision: str
) -> None:
    """The same prediction and gradients, from the operations that a GPU starts."""
    device = next(network_of(loaded[0], random_adapter(loaded[0])).parameters()).device.type
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    inputs = latents(2), torch.tensor([5, 700]), latents(2, seed=1)
    reference = latents(seed=2) if referred else None
    found, started = [], []
    for waits in (False, True):
        monkeypatch.setattr(block, "waits_for_launches", lambda device, waits=waits: waits)
        adapter = random_adapter(loaded[0]).requires_grad_(True)
        network = network_of(loaded[0], adapter, checkpoint=checkpoint)
        for frozen in (network.unet, network.restorer):
            cast_ahead(frozen, precision)
        with LaunchCounter() as counter:
            with torch.autocast(device, dtype, enabled=precision != "no"):
                out = network(*inputs, reference).float()
        # as a scaler does, so that gradients in half precision do not vanish
        (2.0**10 * out.square().mean()).backward()
        named = {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}
        found.append({"prediction": out.detach()} | named)
        started.append(counter.total)
    plain, joined = found
    assert joined.keys() == plain.keys() and len(plain) > 20
    limit = {"no": 1e-4, "bf16": 0.1, "fp16": 0.02}[precision]
    # what a norm that follows takes away again has gradients of rounding alone
    least = 1e-2 * max(float(x.norm()) for x in plain.values())
    for name, expected in plain.items():
        error = float((joined[name] - expected).norm())
        assert error < limit * max(least, float(expected.norm())), name
    assert started[1] != started[0], "other operations"


def test_an_untrained_adapter_leaves_the_first_step_as_it_is(
    loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with joined blocks and without."""
    monkeypatch.setattr(block, "waits_for_launches", lambda device: True)
    adapter = IdentityAdapter.initialise(random_adapter(loaded[0]).info)
    network = network_of(loaded[0], adapter)
    inputs = latents(2), torch.tensor([5, 700]), latents(2, seed=1)
    joined = network(*inputs)
    assert joined.requires_grad
    with torch.no_grad():
        assert torch.equal(network(*inputs), joined)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_captured_training_computes_the_same(loaded) -> None:
    plain = network_of(loaded[0], random_adapter(loaded[0]).requires_grad_(True)).cuda()
    captured = Captured(copy.deepcopy(plain), torch.float32)
    for seed, referred in enumerate((False, True, False, True, True)):
        noisy, lq_latent = latents(2, seed=seed).cuda(), latents(2, seed=seed + 10).cuda()
        inputs = noisy, torch.tensor([5, 700]).cuda(), lq_latent
        reference = latents(seed=seed + 20).cuda() if referred else None
        gradients = []
        for network in (plain, captured):
            network.zero_grad(set_to_none=True)
            network(*inputs, reference).square().mean().backward()
            trained = (plain if network is plain else network.network).adapter
            found = {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}
            gradients.append(found)
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)
