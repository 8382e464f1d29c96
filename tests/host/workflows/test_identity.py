"""Identities through the API queue of a real server: training, files, restoration."""

import copy
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_client import TEXT_EVENT, Client, Run
from comfyui_queue import PromptRefused
from comfyui_server import Server
from PIL import Image
from setup_host import REPO
from tiny_models import randomise, write_bundled
from workflow_runs import SHORT_TRAINING, changed, pictures

from pfstorer_core.identities.adapter import IdentityAdapter

API = REPO / "example_workflows" / "api"
TRAINING = json.loads((API / "train_identity.json").read_text())
PERSONALIZED = json.loads((API / "personalized_restore.json").read_text())
TINY = "tiny_identity_workflow.safetensors"
LOADER, PHOTOS, TRAIN, SAVE, REPORT, PHOTOS_SHOWN = "1", "2", "3", "4", "5", "6"
SMALL = {**SHORT_TRAINING, "preview_every": 3}
FEW = {**SMALL, "size": 0}  # in the size that the restorer knows
Prompt = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(server: Server) -> str:
    """A tiny restorer of random weights in the server's list."""
    write_bundled(server.base / "models" / "pfstorer_restorers" / TINY)
    return TINY


@pytest.fixture(scope="module")
def training(tiny: str) -> Prompt:
    """The template's training, of few steps on the tiny restorer."""
    prompt = changed(TRAINING, LOADER, restorer=tiny)
    return changed(prompt, TRAIN, **SMALL)


@pytest.fixture(scope="module")
def people(server: Server, training: Prompt) -> tuple[str, str]:
    """Files of two adapters of random weights, which change any picture."""
    with Client(server.url) as client:
        run = client.run(changed(training, SAVE, file_name="pattern"))
    assert run.status == "success", run.error
    info = IdentityAdapter.load(identities(server) / "pattern.safetensors").info
    names = []
    for seed in (1, 2):
        adapter = IdentityAdapter.initialise(info, seed)
        randomise(adapter, seed)
        names.append(f"people/person_{seed}.safetensors")
        adapter.save(identities(server) / names[-1])
    return names[0], names[1]


def identities(server: Server) -> Path:
    return server.base / "models" / "pfstorer_identities"


def texts(run: Run, node: str = TRAIN) -> list[str]:
    return [data["text"] for data in run.of_type(TEXT_EVENT) if data["node"] == node]


def error_of(client: Client, prompt: Prompt) -> tuple[str, str]:
    """Returns the failing node's type and sentence."""
    run = client.run(prompt)
    assert run.status == "error"
    assert run.error is not None
    assert run.error["exception_type"].endswith("PFStorerError"), run.error
    return run.error["node_type"], run.error["exception_message"]


def listed(client: Client) -> list[str]:
    """Returns the files that Load Identity Adapter offers now."""
    info = client.object_info("PFStorerLoadIdentity")
    assert info is not None
    options: list[str] = info["input"]["required"]["file_name"][1]["options"]
    return options


def restoration(tiny: str, file_name: str, gamma: float = 1.0) -> Prompt:
    """The template's restoration with an adapter from a file, without anything else."""
    prompt = {node: PERSONALIZED[node] for node in ("1", "4", "6", "8", "15")}
    prompt |= {"3": {"class_type": "PFStorerLoadIdentity", "inputs": {"file_name": file_name}}}
    return changed(changed(prompt, "1", restorer=tiny), "6", gamma=gamma)


def test_training_shows_its_progress_and_ends_in_a_file(client: Client, server: Server) -> None:
    prompt = changed(changed(TRAINING, TRAIN, **FEW), SAVE, file_name="shown/first")
    run = client.run(prompt)
    assert run.status == "success", run.error

    steps = [d["value"] for d in run.of_type("progress") if d["node"] == TRAIN and d["max"] == 6]
    assert (steps[0], steps[-1]) == (1, 6), "the bar starts anew after the views"
    assert steps == sorted(steps)
    lines = texts(run)
    assert lines[0] == "Preparing views of the photos: 0 of 16"
    assert any(
        re.fullmatch(r"Step \d of 6, loss \d+\.\d{4}, \d+:\d\d left", line) for line in lines
    )
    assert any(line.startswith("Step 6 of 6, loss ") for line in lines)
    assert lines[-1].startswith("Comparing the person with strangers: 8 of 8"), "as the last thing"
    sheets = [Image.open(io.BytesIO(b)) for meta, b in run.previews if meta["node_id"] == TRAIN]
    assert len(sheets) >= 2, "one at step 3 and one at step 6"
    assert all(sheet.format == "JPEG" and sheet.size == (768, 768) for sheet in sheets)

    assert run.outputs[SAVE]["text"] == ["Saved shown/first.safetensors"]
    assert "shown/first.safetensors" in listed(client)
    info = IdentityAdapter.load(identities(server) / "shown" / "first.safetensors").info
    assert (info.name, info.photos, info.steps) == ("demo person", 8, 6)
    shown = pictures(client, run)
    assert shown[REPORT].shape == (1, 256, 256, 3)
    assert shown[PHOTOS_SHOWN].shape == (8, 128, 128, 3)

    again = client.run(changed(prompt, SAVE, file_name="shown/second"))
    assert TRAIN in again.of_type("execution_cached")[0]["nodes"], "nothing is trained twice"


def test_the_personalized_template_restores_side_by_side(client: Client) -> None:
    run = client.run(changed(PERSONALIZED, TRAIN, **SMALL))
    assert run.status == "success", run.error
    shown = pictures(client, run)
    titles = {node["_meta"]["title"]: key for key, node in PERSONALIZED.items()}
    parts = ("Low quality", "Base", "Personalized", "Clean")
    row = np.concatenate([shown[titles[part]] for part in parts], 2)
    assert row.shape == (4, 128, 512, 3)
    assert np.array_equal(shown[titles["Side by side"]], row)
    lq, base, personalized, clean = (shown[titles[part]] for part in parts)
    assert min(np.abs(lq - base).mean(), np.abs(lq - clean).mean()) > 2
    assert not np.array_equal(base, personalized), "six steps change something"


def test_a_stopped_training_can_be_used_and_goes_on_to_the_same_end(
    client: Client, server: Server, training: Prompt, tiny: str, pytestconfig: pytest.Config
) -> None:
    long = {"steps": 24, "preview_every": 9, "seed": 11, "name": "stopped"}
    prompt = changed(changed(training, TRAIN, **long), SAVE, file_name="stopped", overwrite=True)
    states = server.base / "user" / "pfstorer" / "training"
    going_on = "Going on with the unfinished training"
    before = server.log().count(going_on)  # by other tests of this server
    seen: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        match = re.match(r"Step (\d+) of 24", event["data"].get("text", ""))
        if match:
            seen.append(int(match[1]))
            if len(seen) == 4:
                client.interrupt()

    run = client.run(prompt, on_event=stop)
    assert run.status == "interrupted"
    assert 4 <= max(seen) < 24
    assert list(states.iterdir()) != []

    (unfinished,) = [name for name in listed(client) if name.startswith("unfinished/stopped-")]
    steps = IdentityAdapter.load(identities(server) / unfinished).info.steps
    assert 4 <= steps < 24
    assert client.run(restoration(tiny, unfinished)).status == "success"

    resumed = client.run(prompt)
    assert resumed.status == "success", resumed.error
    assert server.log().count(going_on) == before + 1
    first = next(line for line in texts(resumed) if line.startswith("Step"))
    assert first.startswith(f"Step {steps + 1} of 24")
    assert unfinished not in listed(client)
    assert len(list(states.iterdir())) == 1, "kept until another training begins"

    # Neither the kept run nor, thanks to another name, ComfyUI's cache is to answer.
    shutil.rmtree(states)
    other = changed(prompt, TRAIN, name="uninterrupted")
    whole = client.run(changed(other, SAVE, file_name="uninterrupted"))
    assert sum(line.startswith("Step") for line in texts(whole)) >= 24
    ours, wanted = (
        IdentityAdapter.load(identities(server) / f"{name}.safetensors", dtype=None).state_dict()
        for name in ("stopped", "uninterrupted")
    )
    assert ours.keys() == wanted.keys()
    if pytestconfig.getoption("gpu"):
        return  # which adds up gradients in any order; law 4 is tested with kernels that do not
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted)
    reports = [pictures(client, ended)[REPORT] for ended in (resumed, whole)]
    assert np.array_equal(*reports), "the same losses and the same restored picture"


def test_photos_may_be_a_list_of_different_sizes(
    client: Client, server: Server, training: Prompt
) -> None:
    prompt = changed(training, PHOTOS, views=2)
    for node, size in (("20", 192), ("21", 160)):
        prompt[node] = changed(prompt, PHOTOS, views=1, size=size, seed=size)[PHOTOS]
    prompt["22"] = {
        "class_type": "CreateList",
        "inputs": {f"inputs.input{k}": [node, 0] for k, node in enumerate((PHOTOS, "20", "21"))},
    }
    prompt = changed(prompt, TRAIN, photos=["22", 0], seed=12)
    run = client.run(changed(prompt, SAVE, file_name="list"))
    assert run.status == "success", run.error
    assert len(run.outputs[REPORT]["images"]) == 1, "one training, not one for each entry"
    assert IdentityAdapter.load(identities(server) / "list.safetensors").info.photos == 4


def test_two_branches_with_different_adapters_do_not_touch_each_other(
    client: Client, tiny: str, people: tuple[str, str]
) -> None:
    alone = [pictures(client, client.run(restoration(tiny, name)))["15"] for name in people]
    both = restoration(tiny, people[0], gamma=0.999999)  # else ComfyUI answers from its cache
    other = restoration(tiny, people[1], gamma=0.999999)
    for node in ("3", "6", "8", "15"):
        both[f"2{node}"] = copy.deepcopy(other[node])
    both["26"]["inputs"]["adapter"] = ["23", 0]
    both["28"]["inputs"]["model"] = ["26", 0]
    both["215"]["inputs"]["images"] = ["28", 0]
    run = client.run(both)
    assert not {"8", "28"} & set(run.of_type("execution_cached")[0]["nodes"])
    together = pictures(client, run)
    assert np.abs(together["15"] - alone[0]).mean() < 0.5
    assert np.abs(together["215"] - alone[1]).mean() < 0.5
    assert np.abs(alone[0] - alone[1]).mean() > 2


def test_gamma_0_is_the_base_and_people_chain(
    client: Client, tiny: str, people: tuple[str, str]
) -> None:
    prompt = restoration(tiny, people[0], gamma=0.0)
    prompt["28"] = changed(prompt, "8", model=["1", 0])["8"]
    prompt["215"] = changed(prompt, "15", images=["28", 0])["15"]
    prompt["33"] = {"class_type": "PFStorerLoadIdentity", "inputs": {"file_name": people[1]}}
    prompt["36"] = changed(prompt, "6", adapter=["33", 0], model=["6", 0], gamma=1.0)["6"]
    prompt["38"] = changed(prompt, "8", model=["36", 0])["8"]
    prompt["315"] = changed(prompt, "15", images=["38", 0])["15"]
    shown = pictures(client, client.run(prompt))
    assert np.array_equal(shown["15"], shown["215"])
    assert np.abs(shown["315"] - shown["215"]).mean() > 2


def test_an_adapter_of_another_base_is_refused_with_both_names(
    client: Client, tiny: str, people: tuple[str, str]
) -> None:
    prompt = changed(restoration(tiny, people[0]), "1", restorer="mini (bundled)")
    node, sentence = error_of(client, prompt)
    assert node == "PFStorerApplyPersonalization"
    assert "was trained on restorer 'tiny'" in sentence
    assert "but the MODEL has restorer 'mini" in sentence


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "..\\outside", "C:\\outside", "", "nul"]
)
def test_names_that_leave_the_folder_are_refused(
    client: Client, server: Server, people: tuple[str, str], name: str
) -> None:
    before = sorted(server.base.rglob("*.safetensors"))
    prompt = {
        "1": {"class_type": "PFStorerLoadIdentity", "inputs": {"file_name": people[0]}},
        "2": {
            "class_type": "PFStorerSaveIdentity",
            "inputs": {"adapter": ["1", 0], "file_name": name, "overwrite": True},
        },
    }
    node, sentence = error_of(client, prompt)
    assert node == "PFStorerSaveIdentity"
    assert f"'{name}' cannot be the name of an identity" in sentence
    assert sorted(server.base.rglob("*.safetensors")) == before


def test_a_file_is_kept_unless_it_may_be_overwritten(
    client: Client, people: tuple[str, str]
) -> None:
    prompt = {
        "1": {"class_type": "PFStorerLoadIdentity", "inputs": {"file_name": people[0]}},
        "2": {
            "class_type": "PFStorerSaveIdentity",
            "inputs": {"adapter": ["1", 0], "file_name": people[1], "overwrite": False},
        },
    }
    assert client.run(prompt).outputs["2"]["text"] == ["Saved people/person_2_2.safetensors"]
    replaced = client.run(changed(prompt, "2", file_name=people[0], overwrite=True))
    assert replaced.outputs["2"]["text"] == [f"Saved {people[0]}"]


@pytest.mark.parametrize(
    ("node", "inputs", "kind"),
    [
        (TRAIN, {"preset": "endless"}, "value_not_in_list"),
        (TRAIN, {"steps": -1}, "value_smaller_than_min"),
        (TRAIN, {"learning_rate": 1.0}, "value_bigger_than_max"),
        (TRAIN, {"photos": [LOADER, 2]}, "return_type_mismatch"),
        (SAVE, {"adapter": [LOADER, 0]}, "return_type_mismatch"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    client: Client, training: Prompt, node: str, inputs: dict[str, Any], kind: str
) -> None:
    with pytest.raises(PromptRefused) as refused:
        client.queue(changed(training, node, **inputs))
    (error,) = refused.value.node_errors[node]["errors"]
    assert error["type"] == kind
    assert error["extra_info"]["input_name"] in inputs


def test_the_persons_name_is_checked_before_the_training(client: Client, training: Prompt) -> None:
    prompt = changed(training, TRAIN, name="../outside")
    node, sentence = error_of(client, prompt)
    assert node == "PFStorerTrainIdentityAdapter"
    assert "'../outside' cannot be the name of an identity" in sentence
