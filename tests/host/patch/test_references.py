"""References of identities, through ComfyUI's own samplers."""

from typing import Any

import pytest
import torch
from golden_weights import relative_l2
from personalized_sampling import sample
from tiny_models import UNET, latents
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.images import encode_references
from pfstorer_core.host.patch.references import reference_features


class TestReferences:
    @staticmethod
    def runs(applied: Any, **settings: Any) -> tuple[Tensor, list[int]]:
        """Returns the result and the batch of each run of the UNet."""
        batches: list[int] = []
        first = applied.model.diffusion_model.input_blocks[0][0]
        handle = first.register_forward_hook(lambda m, args, out: batches.append(len(args[0])))
        try:
            return sample(applied, **settings), batches
        finally:
            handle.remove()

    def test_they_change_the_result_and_each_counts(self, model, ada) -> None:
        results = [
            sample(host.apply_identity(model, ada, references=references))
            for references in (
                None,
                latents(seed=3),
                latents(seed=4),
                torch.cat([latents(seed=3), latents(seed=4)]),
                [latents(seed=3), latents(seed=4)],
                [latents(seed=3), latents(size=(9, 20), seed=4)],
            )
        ]
        for k, a in enumerate(results):
            for n, b in enumerate(results[:k]):
                same = {k, n} == {3, 4}
                assert (relative_l2(a, b) < 1e-5) is same, (k, n)

    @pytest.mark.parametrize("cfg", [1.0, 3.0])
    def test_their_features_are_computed_once_per_sampling(self, model, ada, cfg: float) -> None:
        halves = 2 if cfg > 1 else 1
        references = [latents(3, seed=3), latents(size=(9, 20), seed=4)]
        applied = host.apply_identity(model, ada, references=references)
        _, batches = self.runs(applied, cfg=cfg, steps=4)
        assert sorted(batches) == sorted([3, 1, *[halves] * 4])
        _, again = self.runs(applied, cfg=cfg, steps=4)
        assert again == batches, "and anew in the next"

    def test_nothing_of_them_outlives_the_sampling(self, model, ada) -> None:
        applied = host.apply_identity(model, ada, references=latents())
        before = repr(applied.model_options)
        sample(applied)
        assert repr(applied.model_options) == before

    def test_two_people_have_their_own(self, model, ada, bob) -> None:
        def both(first: int, second: int) -> Tensor:
            one = host.apply_identity(model, ada, references=latents(seed=first))
            return sample(host.apply_identity(one, bob, references=latents(seed=second)))

        assert relative_l2(both(3, 4), both(4, 3)) > 1e-4
        assert torch.equal(both(3, 4), both(3, 4))

    def test_the_features_are_those_of_the_bare_unet(self, model, ada) -> None:
        """At timestep 0 and without SFT: what the UNet's own layers give."""
        unet = model.model.diffusion_model
        device = next(unet.parameters()).device
        context = torch.randn(1, 3, UNET["context_dim"]).to(device)
        shown = latents(2, seed=3).to(device)
        expected: dict[str, Tensor] = {}
        handles = [
            unet.get_submodule(site).register_forward_hook(
                lambda m, args, out, site=site: expected.__setitem__(site, out)
            )
            for site in ada.sites
        ]
        with torch.inference_mode():
            unet(
                shown,
                torch.zeros(2, device=device),
                context.expand(2, -1, -1),
                transformer_options={},
            )
            direct = dict(expected)
            found = reference_features(unet, ada.sites, shown, context)
        for handle in handles:
            handle.remove()
        assert set(found) == set(ada.sites)
        for site in ada.sites:
            torch.testing.assert_close(found[site], direct[site], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 8, 16, 16), (4, 16, 16), (0, 4, 16, 16)])
    def test_latents_of_another_kind_are_refused(self, model, ada, shape) -> None:
        with pytest.raises(PFStorerError, match="references' latent has the shape"):
            host.apply_identity(model, ada, references=torch.zeros(shape))


def test_large_references_are_scaled_to_the_restorers_size(loaded) -> None:
    """The tiny restorer was made for 128 pixels; latents are a quarter, their sides even."""
    photos = [torch.rand(1, 300, 600, 3), torch.rand(2, 60, 44, 1)]
    shapes = [tuple(x.shape) for x in encode_references(loaded[0], loaded[2], photos)]
    assert shapes == [(1, 4, 32, 64), (2, 4, 16, 12)]
