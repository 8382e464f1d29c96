"""What is measured of a person after a training."""

import dataclasses
from typing import Any

import pytest
from tiny_models import random_adapter, untrained_adapter, write_bundled

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.host.feedback import TrainingProgress
from pfstorer_core.host.train.likeness import likeness_scale
from pfstorer_core.host.train.progress import Told
from pfstorer_core.host.train.setup import Setup, set_up
from pfstorer_core.identities.likeness import LikenessScale
from pfstorer_core.training.identity import IdentityTrainingConfig

PHOTOS = list(portrait_set(1, 2, seed=0, size=64))


class Interruption(BaseException):
    """As ComfyUI's own: no `Exception`."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    path = write_bundled(tmp_path_factory.mktemp("restorers") / "tiny.safetensors")
    model, _, vae = host.load_base_restorer(path)
    return set_up(model, vae, IdentityTrainingConfig(size=32, mixed_precision="no"), print)


def measured(setup: Setup, adapter: Any) -> tuple[LikenessScale | None, list[Any], list[str]]:
    reports: list[TrainingProgress] = []
    warnings: list[str] = []
    scale = likeness_scale(setup, adapter, PHOTOS, Told(reports.append, warnings.append))
    return scale, reports, warnings


def test_it_is_a_function_of_adapter_and_photos(setup) -> None:
    found = [measured(setup, random_adapter(setup.model, seed)) for seed in range(6)]
    scales = [scale for scale, *_ in found]
    # random adapters know nobody, so by chance some are further from strangers and some are not
    for scale, reports, warnings in found:
        assert [r.done for r in reports] == list(range(1, 9))
        assert {(r.stage, r.total) for r in reports} == {("likeness", 8)}
        assert bool(warnings) == (scale is None)
    again, *_ = measured(setup, random_adapter(setup.model, 2))
    assert again == scales[2]
    assert len({scale and scale.own for scale in scales}) > 1


def test_an_adapter_that_changes_nothing_has_none(setup) -> None:
    scale, _, warnings = measured(setup, untrained_adapter(setup.model))
    assert scale is None
    assert any("does not tell the person from strangers" in text for text in warnings)


def test_an_interruption_goes_on_up(setup) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.done == 3:
            raise Interruption

    with pytest.raises(Interruption):
        likeness_scale(setup, random_adapter(setup.model), PHOTOS, Told(stop, None))


def test_a_training_leaves_it_in_the_adapter(setup, tmp_path) -> None:
    config = dataclasses.replace(
        setup.config, steps=3, batch=2, views_per_photo=2, preview_every=0, learning_rate=1e-3
    )
    reports: list[TrainingProgress] = []
    vae, photos = setup.vae, [photo[None].movedim(1, -1) for photo in PHOTOS]
    adapter = host.train_identity(
        setup.model, vae, photos, config, on_progress=reports.append, on_warning=lambda text: None
    )
    assert list(dict.fromkeys(r.stage for r in reports)) == ["views", "training", "likeness"]
    alone, *_ = measured(setup, adapter)
    assert adapter.info.likeness == alone
