"""The nodes for several people in this process, as ComfyUI's loader made them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_pack import BUNDLED, RESTORE
from tiny_models import image, random_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.host.measure.judge import AUTOMATIC, MINI_EMBEDDING, NONE

RESTORER = "tiny_people_nodes.safetensors"
SIZE = (64, 96)
MATCH = {"choices": "1=Ada, 2=nobody", "gamma": 1.0, "auto_gamma": False}


@pytest.fixture(scope="module")
def loaded(pack: Any, base_directory: Path) -> tuple[Any, Any]:
    """MODEL and VAE of the pack's loader."""
    write_bundled(base_directory / "models" / "pfstorer_restorers" / RESTORER)
    model, _, vae = pack.node("PFStorerLoadBaseRestorer").execute(RESTORER, BUNDLED).args
    return model, vae


@pytest.fixture(scope="module")
def adapters(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Adapters of random weights, of the pack's own class."""
    folder = tmp_path_factory.mktemp("adapters")
    model = host.load_base_restorer(write_bundled(folder / "restorer.safetensors"))[0]
    found = []
    for seed, name in enumerate(("Ada", "Bob")):
        random_adapter(model, seed, name).save(folder / f"{name}.safetensors")
        found.append(
            pack.module("pfstorer_core.identities.adapter").IdentityAdapter.load(
                folder / f"{name}.safetensors"
            )
        )
    return found


def masks() -> Tensor:
    found = torch.zeros(2, *SIZE)
    found[0, 8:40, 4:28], found[1, 8:40, 50:80] = 1, 1
    return found


def find(pack: Any, picture: Tensor, **given: Any) -> Any:
    return pack.node("PFStorerFindPeople").execute(picture, "automatic", **given)


def listed(**values: Any) -> dict[str, list[Any]]:
    return {name: [value] for name, value in values.items()}


def restore_people(
    pack: Any, loaded: Any, adapters: Any, lists: dict[str, Any] | None = None, **more: Any
) -> Any:
    model, vae = loaded
    inputs = {"image": image(SIZE), "scale": 1.0, "masked_only": False, "steps": 2, "seed": 3}
    return pack.node("PFStorerRestorePeople").execute(
        adapters=adapters,
        **listed(model=model, vae=vae, **{**inputs, **MATCH, **more}),
        **(lists or {}),
    )


def test_found_people_are_masks_boxes_and_a_numbered_picture(pack: Any) -> None:
    output = find(pack, image(SIZE), masks=masks())
    people, found, boxes, preview, report = output.args
    assert people.count == 2
    torch.testing.assert_close(found, masks())
    assert [box["label"] for box in boxes[0]] == ["head 1", "head 2"]
    assert preview.shape == (1, 512, 768, 3)
    assert report == "2 people found (given)"
    assert len(output.ui.as_dict()["images"]) == 1


def test_match_and_tiled_restore_give_what_restore_people_gives(
    pack: Any, loaded: Any, adapters: list[Any]
) -> None:
    model, vae = loaded
    people = find(pack, image(SIZE), masks=masks()).args[0]
    sockets = {"adapter_1": [adapters[0]], "adapter_2": [adapters[1]]}
    matched = pack.node("PFStorerMatchPeople").execute(
        adapters=sockets, **listed(model=model, vae=vae, image=image(SIZE), people=people, **MATCH)
    )
    (matched_model,), (preview,), (report,) = matched.args
    assert "Head 1 | Ada " in report and "Not recognised: 2," in report
    (tiled, _) = (
        pack.node("PFStorerTiledRestore")
        .execute(matched_model, vae, image(SIZE), **{**RESTORE, "seed": 3})
        .args
    )
    restored = restore_people(pack, loaded, sockets, people=people)
    (picture,), (found,), (same_preview,), (told,) = restored.args
    assert torch.equal(picture, tiled)
    torch.testing.assert_close(found, masks())
    assert torch.equal(preview, same_preview)
    assert len(restored.ui.as_dict()["images"]) == 1
    for part in ("2 people found", "Head 1 | Ada ", "Not recognised: 2,", "Identity 1 (Ada)"):
        assert part in told


def test_a_socket_may_bring_a_list_and_an_image_may_be_one(
    pack: Any, loaded: Any, adapters: list[Any]
) -> None:
    """As ComfyUI hands over lists of other nodes: all adapters for each of the pictures."""
    model, vae = loaded
    people = find(pack, image(SIZE), masks=masks()).args[0]
    other = image((48, 64), seed=2)
    alone = find(pack, other, masks=torch.ones(1, 48, 64)).args[0]
    lists = listed(model=model, vae=vae, scale=1.0, masked_only=False, steps=2, seed=3, **MATCH)
    lists |= {"image": [image(SIZE), other], "people": [people, alone]}
    lists["choices"] = ["1=Ada, 2=Bob", "1=Bob"]
    output = pack.node("PFStorerRestorePeople").execute(adapters={"adapter_1": adapters}, **lists)
    pictures, found, _, reports = output.args
    assert [picture.shape for picture in pictures] == [(1, *SIZE, 3), (1, 48, 64, 3)]
    assert [len(x) for x in found] == [2, 1]
    assert "Identity 2 (Bob)" in reports[0] and "Identity 1 (Bob)" in reports[1]


def test_only_recognised_heads_change(pack: Any, loaded: Any, adapters: list[Any]) -> None:
    people = find(pack, image(SIZE), masks=masks()).args[0]
    sockets = {"adapter_1": [adapters[0]]}
    output = restore_people(pack, loaded, sockets, people=people, masked_only=True)
    changed = (output.args[0][0] - image(SIZE)).abs().amax(-1)[0]
    assert changed[masks()[0] > 0].max() > 1e-2
    assert changed[masks()[0] == 0].max() < 1e-6


def test_the_size_may_be_named(pack: Any, loaded: Any, adapters: list[Any]) -> None:
    people = find(pack, image(SIZE), masks=masks()).args[0]
    output = restore_people(
        pack, loaded, {"adapter_1": [adapters[0]]}, people=people, scale=2.0, auto_gamma=True
    )
    assert output.args[0][0].shape == (1, 128, 192, 3)
    assert "(automatic)" in output.args[3][0]


def portraits(number: int) -> Tensor:
    """Photos (4, 64, 64, 3) of a drawn person."""
    return portrait_set(number, 4, seed=5, size=64).movedim(1, -1)


def test_photos_and_a_network_help_to_tell_people_apart(
    pack: Any, loaded: Any, adapters: list[Any]
) -> None:
    """The adapters are of random weights; the bundled network knows drawn people."""
    picture = torch.cat([portrait_set(n, 1, seed=0, size=64) for n in (1, 2)], 3).movedim(1, -1)
    heads = torch.zeros(2, 64, 128)
    heads[0, 8:56, 12:52], heads[1, 8:56, 76:116] = 1, 1
    people = find(pack, picture, masks=heads).args[0]
    given = {"image": picture, "people": people, "choices": ""}
    two = {"photos_1": [portraits(2)], "photos_2": [*portraits(1).split(1), None]}
    sockets = {"adapter_1": [adapters[0]], "adapter_2": [adapters[1]]}

    def report(adapters: Any, photos: Any, embedding: str) -> str:
        more = {"photos": photos, "embedding": [embedding]}
        told = restore_people(pack, loaded, adapters, **given, lists=more).args[3][0]
        # What the clock and the machine's free memory said then.
        return re.sub(r"(?<=Done in ).*|[\d.]+(?= GiB free memory)", "", str(told))

    plain = report(sockets, two, NONE)
    assert "Face recognition" not in plain and report(sockets, None, AUTOMATIC) == plain
    told = report(sockets, two, MINI_EMBEDDING)
    assert "Face recognition has photos of Ada, Bob" in told
    for head, person in ((1, "Bob"), (2, "Ada")):
        assert evidence(told, head)[person] > evidence(plain, head)[person] + 1
    listed = {"adapter_1": adapters}
    assert report(listed, {"photos_1": [portraits(2), portraits(1)]}, MINI_EMBEDDING) == told
    assert "left out: put an ArcFace network (.onnx) into" in report(sockets, two, AUTOMATIC)
    assert "nothing to compare with" in report(sockets, {}, MINI_EMBEDDING)


def evidence(report: str, head: int) -> dict[str, float]:
    """The evidence of a head for each person, of a report."""
    (line,) = re.findall(rf"^Head {head} \| (.*) \| ->", report, re.MULTILINE)
    return {name: float(value) for name, value in (part.split(" ") for part in line.split(" | "))}


def test_photos_belong_to_the_adapter_of_the_same_number(
    pack: Any, loaded: Any, adapters: list[Any]
) -> None:
    people = find(pack, image(SIZE), masks=masks()).args[0]
    one, all_of = {"adapter_1": [adapters[0]]}, {"adapter_1": adapters}
    for sockets, photos, sentence in (
        (one, {"photos_2": [portraits(1)]}, "photos at photos_2 but no adapter at adapter_2"),
        (all_of, {"photos_1": [portraits(1)]}, r"2 adapters and photos_1 1 image\(s\)"),
    ):
        with pytest.raises(Exception, match=sentence):
            restore_people(pack, loaded, sockets, people=people, lists={"photos": photos})
    with pytest.raises(Exception, match="all people are recognised by one network"):
        two = {"embedding": [NONE, MINI_EMBEDDING]}
        restore_people(pack, loaded, one, people=people, lists=two)
