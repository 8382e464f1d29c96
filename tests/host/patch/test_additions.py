"""What identities add to a block, alone and together."""

from typing import Any

import torch
from golden_weights import relative_l2
from personalized_sampling import sample
from tiny_models import UNET, latents, random_adapter
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.host.patch.additions import Addition, add_identities, additions
from pfstorer_core.host.patch.applied import AppliedIdentity
from pfstorer_core.host.patch.masks import MASK_COND


def test_a_mask_acts_where_it_is(ada) -> None:
    """At each block's own resolution: nothing outside, the whole delta inside."""
    site = ada.sites[-1]
    channels = ada.info.site_channels[site]
    h = torch.randn(1, channels, 8, 8)
    context = torch.randn(1, 3, UNET["context_dim"])
    weight = torch.zeros(1, 1, 16, 16)
    weight[..., :8] = 1
    weight[..., 8:10] = 0.5
    delta = ada.block(site)(h, context)
    part = Addition(ada.block(site), 1.5, weight, None)
    out = add_identities(h, context, [part])
    assert torch.equal(out[..., 5:], h[..., 5:])
    torch.testing.assert_close(out[..., :4], (h + 1.5 * delta)[..., :4])
    torch.testing.assert_close(out[..., 4], (h + 0.75 * delta)[..., 4])
    assert add_identities(h, context, []) is h


class TestSeveralPeople:
    """What `additions` collects from several identities."""

    SIGMA = torch.tensor([1.0])

    def collect(self, model: Any, masks: list[Tensor | None], **settings: Any) -> list[Any]:
        adapters = [random_adapter(model, k) for k in range(len(masks))]
        applied = [AppliedIdentity(a, strength=k + 1, **settings) for k, a in enumerate(adapters)]
        conditions = {f"{MASK_COND}{k}": mask for k, mask in enumerate(masks) if mask is not None}
        found = additions(
            applied, model.model.diffusion_model, latents(2), {"sigmas": self.SIGMA}, conditions
        )
        assert not conditions, "the UNet takes no masks"
        if found:
            assert list(found) == list(adapters[0].sites)
        parts = next(iter(found.values()), [])
        assert all(
            [p.block for p in at] == [adapters[int(p.strength) - 1].block(site) for p in at]
            for site, at in found.items()
        )
        return parts

    @staticmethod
    def mask(*columns: float) -> Tensor:
        """(2, 1, 16, 16), of so many stripes."""
        return torch.tensor(columns).repeat_interleave(16 // len(columns)).expand(2, 1, 16, 16)

    def test_disjoint_masks_stay_as_they_are(self, model) -> None:
        a, b = self.collect(model, [self.mask(1.0, 0.0), self.mask(0.0, 0.5)])
        assert torch.equal(a.weight, self.mask(1.0, 0.0))
        assert torch.equal(b.weight, self.mask(0.0, 0.5))
        assert (a.strength, b.strength) == (1, 2)

    def test_overlapping_masks_share_the_place(self, model) -> None:
        masks = [self.mask(1.0, 1.0, 0.3, 0.0), self.mask(0.0, 1.0, 0.4, 0.5), self.mask(1.0, 0.0)]
        parts = self.collect(model, masks)
        total = sum(part.weight for part in parts)
        assert total.max() <= 1 + 1e-6
        torch.testing.assert_close(parts[0].weight, self.mask(0.5, 1 / 3, 0.3, 0.0))
        torch.testing.assert_close(parts[1].weight, self.mask(0.0, 1 / 3, 0.4, 0.5))
        torch.testing.assert_close(parts[2].weight, self.mask(0.5, 1 / 3, 0.0, 0.0))

    def test_without_masks_they_share_everything(self, model) -> None:
        parts = self.collect(model, [None, None])
        assert [part.weight.unique().item() for part in parts] == [0.5, 0.5]
        half, whole = self.collect(model, [self.mask(1.0, 0.0), None])
        torch.testing.assert_close(half.weight, self.mask(0.5, 0.0))
        torch.testing.assert_close(whole.weight, self.mask(0.5, 1.0))

    def test_one_alone_needs_no_weight(self, model) -> None:
        (part,) = self.collect(model, [None])
        assert part.weight is None
        (part,) = self.collect(model, [None, torch.zeros(2, 1, 16, 16)])
        assert part.weight is None and part.strength == 1

    def test_outside_of_its_sigmas_none_acts(self, model) -> None:
        assert self.collect(model, [None], sigmas=(0.9, 0.1)) == []
        assert len(self.collect(model, [None], sigmas=(1.1, 0.9))) == 1

    def test_the_order_does_not_matter(self, model, ada, bob) -> None:
        left, right = self.mask(1.0, 0.6)[:1, 0], self.mask(0.4, 1.0)[:1, 0]
        one = host.apply_identity(host.apply_identity(model, ada, mask=left), bob, mask=right)
        other = host.apply_identity(host.apply_identity(model, bob, mask=right), ada, mask=left)
        assert relative_l2(sample(one), sample(other)) < 1e-5
        assert relative_l2(sample(one), sample(host.apply_identity(model, ada, mask=left))) > 1e-3

    def test_the_same_person_twice_without_masks_is_that_person_once(self, model, ada) -> None:
        twice = host.apply_identity(host.apply_identity(model, ada), ada)
        assert relative_l2(sample(twice), sample(host.apply_identity(model, ada))) < 1e-5
