"""The main job on a user's own photos, through the API queue of a real server."""

import time
from pathlib import Path

import pytest
import torch
from comfyui_client import Client
from comfyui_server import Server
from PIL import Image
from restore_person import LARGEST, PHOTOS, PICTURE, build, prepare, summarise
from run_workflow import run_on, without_training
from tiny_models import write_bundled
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import save_image
from workflow_runs import changed

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter

TINY = "tiny_restore_person.safetensors"
FEW = {"steps": 2, "views_per_photo": 2, "batch": 1, "preview_every": 0}


def test_own_photos_come_out_restored_without_and_with_the_adapter(
    client: Client, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{k}.png" for k in range(4)]
    portraits = portrait_set(5_000_000, 4, 1, 96)[..., :80]  # (4, 3, 96, 80)
    generator = torch.Generator().manual_seed(0)
    portraits[3:] = degrade(portraits[3:], PRESETS["medium"], generator)
    for path, portrait in zip(paths, portraits, strict=True):
        save_image(portrait, path)
    write_bundled(server.base / "models" / "pfstorer_restorers" / TINY)
    inputs = server.base / "input"
    size = prepare(paths[:3], paths[3], inputs)
    assert size == (128, 107), "a small picture is restored at the size that the restorer knows"

    prompt = changed(changed(build("ann", max(size)), "1", restorer=TINY), "3", **FEW)
    early = without_training(client, prompt)
    assert {"7", "14", "report base"} <= set(early)
    assert not {"3", "6", "8", "15", "adapter"} & set(early)
    results = run_on(client, prompt, tmp_path, time.monotonic())

    shown = capsys.readouterr().out
    order = [
        shown.index(x) for x in ("Restore without", "First 2 picture", "Train", "Restore with ")
    ]
    assert order == sorted(order)
    assert {path.name for path in results.pictures} == {
        "low_quality.png",
        "base.png",
        "personalized.png",
    }
    assert Image.open(tmp_path / "personalized.png").size == (107, 128)
    report, page = summarise(results, sorted((inputs / PHOTOS).iterdir()))
    assert "| LQ | 80 x 96 | - |" in report
    assert "| personalized | 107 x 128 |" in report
    assert "Identity 1 (ann), gamma 1: everywhere" in report
    assert page.shape[0] == 3 and page.shape[2] > 3 * 256
    saved = server.base / "models" / "pfstorer_identities" / "ann.safetensors"
    assert IdentityAdapter.load(saved).info.photos == 3


def test_large_and_turned_photos_become_small_and_upright(tmp_path: Path) -> None:
    photo = to_pil_image(torch.rand(3, 30, 2 * LARGEST, generator=torch.Generator().manual_seed(0)))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    photo.save(tmp_path / "turned.jpg", exif=turned)
    size = prepare([tmp_path / "turned.jpg"], tmp_path / "turned.jpg", tmp_path / "input")
    assert size == (LARGEST, 15)
    assert Image.open(tmp_path / "input" / PICTURE).size == (30, 2 * LARGEST)
    (stored,) = (tmp_path / "input" / PHOTOS).iterdir()
    assert Image.open(stored).size == (15, LARGEST)


def test_a_damaged_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")
    with pytest.raises(PFStorerError, match=r"half\.png"):
        prepare([tmp_path / "half.png"], tmp_path / "half.png", tmp_path / "input")
