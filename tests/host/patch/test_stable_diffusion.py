"""Identity adapters in UNets of Stable Diffusion's layout."""

from typing import Any

import pytest
import torch
from golden_weights import relative_l2
from tiny_models import latents, random_restorer

from pfstorer_core.host.load.unet import build_unet
from pfstorer_core.host.patch.applied import AppliedIdentity
from pfstorer_core.host.patch.bare_unet import restorer_options
from pfstorer_core.host.sites import find_identity_sites
from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig

SD = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "legacy": False,
}
SD15 = {**SD, "context_dim": 768, "num_heads": 8, "use_linear_in_transformer": False}
SD21 = {**SD, "context_dim": 1024, "num_head_channels": 64, "use_linear_in_transformer": True}
# parameters of the adapter, in all
PARAMETERS = {"1.5": (SD15, 16_128_896), "2.1": (SD21, 17_515_904)}


@pytest.mark.parametrize("version", PARAMETERS)
def test_one_config_fits_stable_diffusion(version: str) -> None:
    config, parameters = PARAMETERS[version]
    unet = build_unet({**config, "model_channels": 320}, device="meta")
    sites = find_identity_sites(unet)
    assert len(sites) == 21
    assert list(sites)[:3] == ["input_blocks.1.1", "input_blocks.2.1", "input_blocks.4.1"]
    assert sites["input_blocks.11.0"] == 1280 and sites["middle_block.2"] == 1280
    assert list(sites.items())[-1] == ("output_blocks.11.1", 320)
    info = AdapterInfo("x", "y", "z", config["context_dim"], sites, PersonalizationConfig())
    adapter = IdentityAdapter(info, device="meta")
    found = sum(p.numel() for p in adapter.parameters())
    assert found == parameters
    assert 2 * found < 64 * 10**6, "bytes of the file in float16"


@pytest.mark.parametrize("config", [SD15, SD21], ids=["1.5", "2.1"])
def test_stable_diffusions_layout_runs(config: dict[str, Any]) -> None:
    """The same layers at a tenth of the width."""
    narrow = {**config, "model_channels": 32, "context_dim": 32, "num_head_channels": 32}
    narrow.pop("num_heads", None)
    torch.manual_seed(0)
    unet = build_unet(narrow)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    restorer = random_restorer(unet, EncoderConfig(4, 32, 32, 1, (8,), (1, 1, 1, 1), 4))
    sites = find_identity_sites(unet)
    assert len(sites) == 21
    adapter = IdentityAdapter.initialise(
        AdapterInfo("x", "y", "z", 32, sites, PersonalizationConfig())
    )
    with torch.no_grad():
        for site in sites:
            adapter.block(site).out.weight.normal_(std=0.05)
    identity = AppliedIdentity(
        adapter, references=(latents(seed=3),), reference_context=torch.randn(1, 3, 32)
    )
    context, lq = torch.randn(2, 3, 32), latents(2, seed=1)
    results = []
    for applied in ([], [identity]):
        options = restorer_options(unet, restorer, lq, applied)
        with torch.no_grad():
            args = latents(2), torch.tensor([5.0, 700.0]), context
            results.append(unet(*args, transformer_options=options))
    assert results[1].isfinite().all()
    assert relative_l2(results[1], results[0]) > 1e-3
