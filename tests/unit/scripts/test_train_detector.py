"""The script that trains the head detector, on drawn people alone."""

import runpy
from pathlib import Path

import pytest
import torch
from setup_host import REPO

from pfstorer_core.people.detector import load_head_finder


def test_scenes_are_made_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    main = runpy.run_path(str(REPO / "scripts" / "train_detector.py"))["main"]
    run, out = ["--runs", str(tmp_path)], tmp_path / "detector.safetensors"
    main(["scenes", *run, "--drawn", "2", "--count", "8"])
    main(["train", *run, "--steps", "3", "--batch", "4", "--precision", "no", "--out", str(out)])
    assert isinstance(load_head_finder(out)(torch.rand(3, 64, 64)), list)


def test_photos_need_labels(tmp_path: Path) -> None:
    main = runpy.run_path(str(REPO / "scripts" / "train_detector.py"))["main"]
    with pytest.raises(SystemExit):
        main(["scenes", "--runs", str(tmp_path), "--photos", str(tmp_path)])
