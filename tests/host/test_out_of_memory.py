"""Runs that have less memory than planned: smaller batches, then smaller tiles, never a lost run.

A limit on the size of what a real network takes stands for a small GPU.
"""

import logging
import weakref
from typing import Any

import comfy.model_management as mm
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from device import free_memory
from golden_weights import relative_l2
from tiled_sampling import KEY, record_forwards, sample, tiled
from tiny_models import image, latents, write_bundled
from torch import nn

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.memory import is_out_of_memory, lack_of_memory_told
from pfstorer_core.host.tiles.layout import TileLayout
from pfstorer_core.host.tiles.vae import decode, encode

SIZE = (16, 24)
SHAPE = (1, 4, *SIZE)


@pytest.fixture
def loaded(tmp_path):
    """MODEL, CLIP and VAE, which tests may hook."""
    return host.load_base_restorer(write_bundled(tmp_path / "tiny.safetensors"))


def limited(model: Any, numbers: int, error: type[Exception] = torch.OutOfMemoryError) -> Any:
    """Returns a clone whose UNet takes so many latent pixels at once."""

    def wrapper(executor, x, *args, **kwargs):
        if x.shape[0] * x.shape[2] * x.shape[3] > numbers:
            raise error("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, f"{KEY}_limit", wrapper)
    return model


def limit_layer(layer: nn.Module, pixels: int) -> None:
    """Lets a layer take features of so many pixels."""

    def check(module, args) -> None:
        if args[0].shape[0] * args[0].shape[2] * args[0].shape[3] > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    layer.register_forward_pre_hook(check)


class TestUNet:
    @pytest.mark.parametrize(
        ("limit", "batch", "tile", "levels"),
        [(64 * 2, 1, 8, 2), (64, 1, 8, 2), (16, 1, 4, 3)],
    )
    def test_goes_on_with_less(
        self, loaded, caplog, limit: int, batch: int, tile: int, levels: int
    ) -> None:
        model = host.condition_on_lq(loaded[0], latents(1, SIZE, seed=7))
        with caplog.at_level(logging.WARNING, "pfstorer_core"):
            reduced = sample(tiled(limited(model, limit), SIZE, batch=4), SHAPE, 1.0)
        lines = [r.getMessage() for r in caplog.records if "Out of memory" in r.getMessage()]
        assert lines[0].startswith(
            "Out of memory with 4 tiles of 8 latent pixels at once; going on"
        )
        assert lines[0].endswith("with 2 of 8")
        assert len(lines) == (1 if limit == 128 else levels)
        assert (
            relative_l2(reduced, sample(tiled(model, SIZE, tile, batch=batch), SHAPE, 1.0)) < 1e-5
        )

    def test_the_smaller_layout_is_kept_for_the_rest(self, loaded) -> None:
        model = host.condition_on_lq(loaded[0], latents(1, SIZE, seed=7))
        recording, forwards = record_forwards(model)
        sample(tiled(limited(recording, 64), SIZE, batch=2), SHAPE, 1.0, steps=3)
        tiles = len(TileLayout(*SIZE, 8).tiles)
        assert [f.x.shape[0] for f in forwards] == [2, *[1] * 3 * tiles]

    def test_a_picture_of_one_tile_is_cut(self, loaded) -> None:
        pixels = image((64, 96))
        settings = {"steps": 2, "color_fix": "none"}
        whole = host.restore(*loaded[::2], pixels, **settings)
        cut = host.restore(*loaded[::2], pixels, tile_size=48, **settings)
        out = host.restore(limited(loaded[0], 150), loaded[2], pixels, **settings)
        assert relative_l2(out, cut) < 1e-5 < relative_l2(out, whole)

    @pytest.mark.parametrize("interval", [1, 3])
    def test_with_guidance_and_kept_features(self, loaded, interval: int) -> None:
        settings = {"steps": 3, "cfg": 2.0, "tile_size": 32, "encoder_interval": interval}
        pixels = image((64, 96), batch=2)
        # its noise schedule too: of three steps one lies halfway, where the last digit decides
        mm.load_models_gpu([loaded[0]])
        expected = host.restore(*loaded[::2], pixels, tile_batch=1, **settings)
        out = host.restore(limited(loaded[0], 128), loaded[2], pixels, tile_batch=4, **settings)
        assert relative_l2(out, expected) < 1e-5

    def test_not_even_the_smallest_tile(self, loaded) -> None:
        model = host.condition_on_lq(loaded[0], latents(1, SIZE))
        with pytest.raises(PFStorerError, match=r"not enough memory even for one tile of 4 latent"):
            sample(tiled(limited(model, 15), SIZE), SHAPE)

    def test_other_errors_pass(self, loaded) -> None:
        def broken(executor, x, *args, **kwargs):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        model = host.condition_on_lq(loaded[0], latents(1, SIZE))
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, broken)
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            sample(tiled(model, SIZE), SHAPE)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Allocation on device"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
)
def test_what_says_that_memory_is_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("x")]
)
def test_what_says_something_else(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_nothing_of_what_was_tried_stays_while_it_is_told(loaded) -> None:
    tried: list[weakref.ref[torch.Tensor]] = []

    def attempt() -> None:
        big = torch.zeros(1000)
        tried.append(weakref.ref(big))
        raise torch.OutOfMemoryError("Allocation on device")

    mm.load_models_gpu([loaded[0]])
    assert mm.loaded_models()
    with pytest.raises(PFStorerError, match=r"^Out of memory here; do less\.$") as caught:
        with lack_of_memory_told("here; do less."):
            attempt()
    assert isinstance(caught.value.__context__, torch.OutOfMemoryError)
    assert tried[0]() is None
    assert not mm.loaded_models()


class TestVAE:
    PIXELS = (160, 320)  # 40 x 80 latent pixels

    def lines(self, caplog) -> list[str]:
        texts = (record.getMessage() for record in caplog.records)
        return [text for text in texts if text.startswith("Out of memory in the VAE")]

    def test_encoding_goes_on_with_smaller_tiles(self, loaded, caplog) -> None:
        vae, pixels = loaded[2], image(self.PIXELS).movedim(-1, 1)
        whole = encode(vae, pixels, self.PIXELS)
        limit_layer(vae.first_stage_model.encoder.stem, 40 * 40)
        with caplog.at_level(logging.WARNING, "pfstorer_core"):
            out = encode(vae, pixels, self.PIXELS)
        assert self.lines(caplog) == [
            "Out of memory in the VAE; going on with tiles of 40 latent pixels"
        ]
        assert 0 < relative_l2(out, whole) < 0.05

    def test_decoding_goes_on_with_smaller_tiles(self, loaded, caplog) -> None:
        vae, samples = loaded[2], latents(1, (40, 80))
        whole = decode(vae, samples)
        limit_layer(vae.first_stage_model.decoder.stem, 40 * 40)
        with caplog.at_level(logging.WARNING, "pfstorer_core"):
            out = decode(vae, samples)
        assert len(self.lines(caplog)) == 1
        assert 0 < relative_l2(out, whole) < 0.05

    def test_not_even_the_smallest_tile(self, loaded) -> None:
        vae = loaded[2]
        limit_layer(vae.first_stage_model.decoder.stem, 100)
        with pytest.raises(
            PFStorerError, match=r"not enough memory for the VAE even with tiles of"
        ):
            decode(vae, latents(1, (40, 80)))

    def test_tiles_follow_the_free_memory(self, loaded, monkeypatch) -> None:
        vae, samples = loaded[2], latents(1, (40, 80))
        sizes: list[tuple[int, ...]] = []
        vae.first_stage_model.decoder.stem.register_forward_hook(
            lambda module, args, out: sizes.append(tuple(args[0].shape[2:]))
        )
        needed = vae.memory_used_decode((1, 4, 20, 20), vae.vae_dtype)
        monkeypatch.setattr(mm, "get_free_memory", free_memory(1.5 * needed))
        decode(vae, samples)
        assert set(sizes) == {(20, 20)}
