"""Compare Restorations and Degrade Image in this process, as ComfyUI's loader made them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from comfyui_client import Client
from comfyui_queue import PromptRefused
from onnx_networks import write_onnx_means
from setup_host import REPO
from torch import Tensor
from workflow_runs import changed, pictures

NETWORK = "colours.onnx"
NAMES = ("picture", "panels", "psnr", "ssim", "lpips", "similarity", "baseline", "report")
MINI = "mini (drawn portraits only)"

PROMPT = json.loads((REPO / "example_workflows" / "api" / "measure.json").read_text())
DEGRADE, RESTORE, COMPARE, REPORT, SAVE = "4", "5", "6", "7", "8"


@pytest.fixture
def embeddings(pack: Any) -> Iterator[Path]:
    """The folder of embeddings, empty again after the test."""
    path = Path(folder_paths.get_folder_paths("pfstorer_embeddings")[0])
    yield path
    for file in path.iterdir():
        file.unlink()


def portraits(pack: Any, views: int, identity: int = 5_000_000, **others: Any) -> Tensor:
    settings = {"seed": 1, "size": 64, "degradation": "none", **others}
    return pack.node("PFStorerDemoPortrait").execute(identity, views, **settings).args[0]


def compared(pack: Any, restored: Tensor, embedding: str = MINI, **given: Any) -> dict[str, Any]:
    faces = given.pop("faces", "find faces")
    lists = {k: v if isinstance(v, list) else [v] for k, v in given.items()}
    node = pack.node("PFStorerCompare")
    result = node.execute(restored=[restored], embedding=[embedding], faces=[faces], **lists)
    (shown,) = result.ui.as_dict()["images"]
    assert Path(folder_paths.get_temp_directory(), shown["filename"]).is_file()
    return dict(zip(NAMES, result.args, strict=True))


def degraded(pack: Any, image: Tensor, degradation: Any = "medium", **others: Any) -> Any:
    settings = {"seed": 3, "keep_size": True, "person_size": 0, **others}
    values = {"degradation": degradation} if isinstance(degradation, str) else degradation
    return pack.node("PFStorerDegrade").execute(image, degradation=values, **settings).args


def explicit(**values: Any) -> dict[str, Any]:
    none = {"blur": 0.0, "downsample": 1.0, "noise": 0.0, "jpeg_quality": 0}
    return {"degradation": "explicit", **none, **values}


def test_all_figures_and_both_pictures(pack: Any) -> None:
    views = portraits(pack, 5)
    truth, references = views[:2], views[2:]
    (lq,), _ = degraded(pack, truth)
    result = compared(pack, truth, truth=truth, references=references, lq=lq, base=lq)
    assert result["psnr"] == math.inf
    assert result["ssim"] == pytest.approx(1, abs=1e-4)
    assert 0.3 < result["similarity"] <= 1 and 0.3 < result["baseline"] <= 1
    assert result["picture"].ndim == 4 and len(result["picture"]) == 1
    assert result["panels"].shape == (2 * 4, 64, 64, 3)
    assert torch.allclose(result["panels"][[3, 7]], truth)
    assert torch.allclose(result["panels"][[0, 4]], lq)
    rows = ["LQ", "base", "personalized", "truth", "references among themselves", "1", "2"]
    assert [row for row in rows if f"| {row} |" not in result["report"]] == []
    spoilt = compared(pack, lq, truth=truth, references=references)
    assert 5 < spoilt["psnr"] < 40
    assert spoilt["similarity"] < result["similarity"]


def test_what_is_not_connected_is_not_a_number(pack: Any) -> None:
    views = portraits(pack, 4)
    alone = compared(pack, views[:1], references=views[1:])
    assert math.isnan(alone["psnr"]) and math.isnan(alone["ssim"]) and math.isnan(alone["lpips"])
    assert math.isfinite(alone["similarity"])
    without = compared(pack, views[:1] * 0.9, truth=views[:1])
    assert math.isfinite(without["psnr"])
    assert math.isnan(without["similarity"]) and math.isnan(without["baseline"])
    assert "There are no references" in without["report"]
    with pytest.raises(ValueError, match="Neither truth nor references are connected"):
        compared(pack, views)


def test_references_may_differ_in_size_and_have_alpha(pack: Any) -> None:
    views = portraits(pack, 2)
    large = portraits(pack, 1, size=96, seed=2)
    transparent = torch.cat([large, torch.ones_like(large[..., :1])], -1)
    results = [
        compared(pack, views[:1], references=[views[1:], other]) for other in (large, transparent)
    ]
    assert results[0]["similarity"] == results[1]["similarity"]
    assert math.isfinite(results[0]["baseline"])


def test_without_a_file_automatic_says_so_and_gives_the_rest(pack: Any, embeddings: Path) -> None:
    views = portraits(pack, 3)
    result = compared(pack, views[:1] * 0.9, "automatic", truth=views[:1], references=views[1:])
    assert math.isfinite(result["psnr"]) and math.isnan(result["similarity"])
    assert "put an ArcFace network (.onnx) into" in result["report"]
    (embeddings / NETWORK).write_bytes(b"no network")
    result = compared(pack, views[:1] * 0.9, "automatic", truth=views[:1], references=views[1:])
    assert math.isfinite(result["psnr"]) and math.isnan(result["similarity"])
    assert f"left out: '{NETWORK}' is damaged" in result["report"]
    with pytest.raises(ValueError, match="damaged or no ONNX network"):
        compared(pack, views[:1], NETWORK, references=views[1:])
    with pytest.raises(ValueError, match=r"no embedding 'gone\.onnx'; put the file into"):
        compared(pack, views[:1], "gone.onnx", references=views[1:])
    none = compared(pack, views[:1] * 0.9, "none", truth=views[:1], references=views[1:])
    assert math.isnan(none["similarity"])


def test_a_network_for_faces(pack: Any, embeddings: Path) -> None:
    """Real faces need crops, and crops need a detector, unless the pictures are crops."""
    write_onnx_means(embeddings / NETWORK, [1, 3, 112, 112])
    node = pack.node("PFStorerCompare")
    assert NETWORK in next(i for i in node.define_schema().inputs if i.id == "embedding").options
    red, green = (torch.zeros(1, 50, 50, 3) + torch.tensor(c) for c in ([1.0, 0, 0], [0, 1.0, 0]))
    given = {"references": [red, green]}
    for embedding in (NETWORK, "automatic"):
        result = compared(pack, red, embedding, **given)
        assert math.isnan(result["similarity"])
        assert "put ComfyUI's MediaPipe face model into models/detection" in result["report"]
        result = compared(pack, red, embedding, faces="pictures are face crops", **given)
        # red is (1, -1, -1) / sqrt 3 to the network and green (-1, 1, -1) / sqrt 3
        assert result["baseline"] == pytest.approx(-1 / 3, abs=1e-5)
        assert result["similarity"] == pytest.approx((1 - 1 / 3) / 2, abs=1e-5)


def test_faces_are_cut_out_of_pictures(pack: Any, embeddings: Path, tmp_path: Path) -> None:
    pytest.importorskip("comfy_extras.nodes_mediapipe")
    from face_detectors import landmarker_weights

    write_onnx_means(embeddings / NETWORK, [1, 3, 112, 112])
    folder = Path(folder_paths.models_dir, "detection")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "faces.safetensors"
    safetensors.torch.save_file(landmarker_weights(), file)
    try:
        dark = torch.full((1, 240, 320, 3), 0.1)
        bright = dark.clone()
        bright[:, 60:72, 60:72] = 1.0
        result = compared(pack, bright, NETWORK, references=[bright, bright, dark])
        assert result["similarity"] == pytest.approx(1, abs=1e-5)
        assert "Reference 3: no face was found" in result["report"]
        result = compared(pack, dark, NETWORK, references=bright)
        assert math.isnan(result["similarity"])
        assert "Picture 1: no face was found" in result["report"]
    finally:
        file.unlink()


def test_another_file_of_the_same_name_is_noticed(pack: Any, embeddings: Path) -> None:
    node = pack.node("PFStorerCompare")

    def state(embedding: str) -> Any:
        return node.fingerprint_inputs(embedding=[embedding], faces=[None], restored=[None])

    assert state("automatic") is None
    write_onnx_means(embeddings / NETWORK, [1, 3, 112, 112])
    first = state("automatic")
    assert first == state(NETWORK) is not None
    write_onnx_means(embeddings / NETWORK, [None, 3, None, None])
    assert state("automatic") != first
    assert state(MINI) is None


@pytest.mark.parametrize("degradation", ["light", "extreme", explicit(blur=9.0, noise=20.0)])
def test_an_item_alone_is_as_in_the_batch(pack: Any, degradation: Any) -> None:
    views = portraits(pack, 3)
    (batch,), _ = degraded(pack, views, degradation)
    assert batch.shape == views.shape
    for k in range(3):
        (alone,), _ = degraded(pack, views[k : k + 1], degradation, seed=3 + k)
        assert torch.equal(alone[0], batch[k])
    (again,), _ = degraded(pack, views, degradation)
    assert torch.equal(again, batch)
    (other,), _ = degraded(pack, views, degradation, seed=4)
    assert not torch.equal(other[0], batch[0])


def test_one_picture_is_as_demo_portrait_degrades_it(pack: Any) -> None:
    (ours,), _ = degraded(pack, portraits(pack, 1), "extreme", seed=1)
    assert torch.equal(ours, portraits(pack, 1, degradation="extreme"))


def test_small_pictures_of_several_sizes_come_as_a_list(pack: Any) -> None:
    views = portraits(pack, 4)
    small, text = degraded(pack, views, "extreme", keep_size=False)
    assert len(small) == 4 and len({p.shape for p in small}) > 1
    assert all(len(p) == 1 and 3 <= min(p.shape[1:3]) <= 10 for p in small)
    height, width = small[1].shape[1:3]
    assert f"Picture 2: 64 x 64 to {width} x {height} px" in text
    same, text = degraded(pack, views, explicit(downsample=4.0), keep_size=False)
    assert [p.shape for p in same] == [(4, 16, 16, 3)]
    assert "64 x 64 to 16 x 16 px" in text and "scaled back" not in text


def test_explicit_values_are_told_and_only_noise_is_random(pack: Any) -> None:
    view = portraits(pack, 1)
    quiet = explicit(blur=8.0, downsample=2.0, jpeg_quality=70)
    results = [degraded(pack, view, quiet, seed=seed) for seed in (1, 2)]
    assert torch.equal(results[0][0][0], results[1][0][0])
    assert results[0][1].splitlines() == [
        "Blur 8 px of 512, 2 times smaller, noise 0 of 255, JPEG quality 70, seed 1",
        "Sigma of the blur in a picture of 64 x 64: 1 px",
        "64 x 64 to 32 x 32 px, scaled back",
    ]
    (noisy,), _ = degraded(pack, view, quiet | {"noise": 20.0})
    assert not torch.equal(noisy, results[0][0][0])


def test_blur_follows_the_person_where_one_is_given(pack: Any) -> None:
    view = portraits(pack, 1, size=128)
    texts, blurred = [], []
    for person_size in (0, 32):
        (image,), text = degraded(pack, view, explicit(blur=16.0), person_size=person_size)
        texts.append(text.splitlines()[1])
        blurred.append(float((image - view).abs().mean()))
    assert [text.rsplit(": ")[-1] for text in texts] == ["4 px", "1 px"]
    assert blurred[0] > 2 * blurred[1] > 0
    # a preset's blur as well
    whole, part = (degraded(pack, view, "light", person_size=n)[0][0] for n in (0, 32))
    assert not torch.equal(whole, part)


def test_alpha_is_left_out_and_said(pack: Any) -> None:
    view = portraits(pack, 1)
    transparent = torch.cat([view, torch.full_like(view[..., :1], 0.3)], -1)
    (image,), text = degraded(pack, transparent)
    assert torch.equal(image, degraded(pack, view)[0][0])
    assert text.endswith("The alpha channel is left out.")


def test_a_large_batch_shows_progress_and_can_be_stopped(pack: Any) -> None:
    view = portraits(pack, 1)
    batch = view.expand(3, -1, -1, -1)
    stopping = False
    seen: list[tuple[int, int]] = []

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        seen.append((value, total))
        if stopping:
            mm.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        for run in (lambda: compared(pack, batch, truth=view), lambda: degraded(pack, batch)):
            stopping = False
            seen.clear()
            run()
            assert seen[0] == (1, 3) and seen[-1] == (3, 3)
            stopping = True
            seen.clear()
            with pytest.raises(mm.InterruptProcessingException):
                run()
            assert seen == [(1, 3)]
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def test_a_blur_wider_than_the_picture_is_refused(pack: Any) -> None:
    with pytest.raises(ValueError, match=r"sigma of 3200 px .* lower blur, or person_size"):
        degraded(pack, portraits(pack, 1), explicit(blur=100.0), person_size=16384)


@pytest.mark.parametrize("broken", [torch.nan, 255.0])
def test_impossible_pictures_are_refused(pack: Any, broken: float) -> None:
    view = portraits(pack, 1)
    view[0, 0, 0, 0] = broken
    with pytest.raises(ValueError, match=" values "):
        degraded(pack, view)
    with pytest.raises(ValueError, match=" values "):
        compared(pack, view, references=portraits(pack, 2))


def test_the_template_runs_as_it_lies(client: Client) -> None:
    run = client.run(PROMPT)
    assert run.status == "success", run.error
    shown = pictures(client, run)
    assert shown[SAVE].shape[0] == 1 and (shown[SAVE] == shown[COMPARE]).all()
    (report,) = run.outputs[REPORT]["text"]
    rows = {
        label.strip(): [float(x) for x in values if x.strip() not in ("-", "")]
        for label, *values in (x.split("|")[1:] for x in report.splitlines()[2:6])
    }
    assert list(rows) == ["LQ", "restored", "truth", "references among themselves"]
    lq, restored = rows["LQ"], rows["restored"]
    assert all(after > before for before, after in zip(lq, restored, strict=True))
    (best,) = rows["truth"]
    assert restored[-1] < best


def test_explicit_values_through_the_queue(client: Client) -> None:
    values = {"blur": 2.0, "downsample": 4.0, "noise": 0.0, "jpeg_quality": 0}
    inputs = {f"degradation.{name}": value for name, value in values.items()}
    prompt = changed(PROMPT, DEGRADE, degradation="explicit", keep_size=False, **inputs)
    prompt = {node: prompt[node] for node in ("2", DEGRADE, SAVE)}
    prompt = changed(prompt, SAVE, images=[DEGRADE, 0])
    run = client.run(prompt)
    assert run.status == "success", run.error
    assert pictures(client, run)[SAVE].shape == (2, 32, 32, 3)
    with pytest.raises(PromptRefused) as refused:
        client.queue(changed(prompt, DEGRADE, **{"degradation.downsample": 0.5}))
    (error,) = refused.value.node_errors[DEGRADE]["errors"]
    assert error["type"] == "value_smaller_than_min"


def test_nothing_to_compare_with_gets_one_sentence(client: Client) -> None:
    prompt = changed(PROMPT, COMPARE, restored=["4", 0])
    for name in ("truth", "references"):
        del prompt[COMPARE]["inputs"][name]
    run = client.run(prompt)
    assert run.status == "error" and run.error is not None
    assert run.error["exception_type"].endswith("PFStorerError")
    assert run.error["exception_message"].strip().startswith("Neither truth nor references")
