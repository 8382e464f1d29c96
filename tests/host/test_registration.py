import json
import re
from urllib.parse import quote

import pytest
from comfyui_client import Client
from comfyui_server import PACK, Server
from labels import ENGLISH, node_labels, other_languages
from setup_host import REPO

NODES = {
    "PFStorerApplyPersonalization": "Apply Personalization",
    "PFStorerCompare": "Compare Restorations",
    "PFStorerConditionOnLQ": "Condition on LQ Image",
    "PFStorerDegrade": "Degrade Image",
    "PFStorerDemoAlbum": "Demo Album Page",
    "PFStorerDemoGroup": "Demo Group Photo",
    "PFStorerDemoPortrait": "Demo Portrait",
    "PFStorerFindPeople": "Find People",
    "PFStorerLoadBaseRestorer": "Load Base Restorer",
    "PFStorerLoadCFW": "Load CFW Decoder",
    "PFStorerLoadIdentity": "Load Identity Adapter",
    "PFStorerMatchPeople": "Match People",
    "PFStorerRestorePeople": "Restore People",
    "PFStorerSaveIdentity": "Save Identity Adapter",
    "PFStorerTiledRestore": "Tiled Restore",
    "PFStorerTrainIdentityAdapter": "Train Identity Adapter",
}
# a dynamic combo brings further widgets with some of its options; no template chooses such a one
WIDGETS = ("INT", "FLOAT", "COMBO", "COMFY_DYNAMICCOMBO_V3", "STRING", "BOOLEAN")
GROWING = "COMFY_AUTOGROW_V3"  # a row of slots, one more than are connected
BLUEPRINTS = {path.stem for path in (REPO / "subgraphs").glob("*.json")}
TEMPLATES = sorted(path.stem for path in (REPO / "example_workflows").glob("*.json"))
LANGUAGES = [ENGLISH, *other_languages()]
IMPORT_SECONDS = 1.0  # measured: 0.1


def input_options(info: dict) -> dict[str, dict]:
    """Returns the options of all inputs in a node's info, by name."""
    groups = (info["input"].get(group, {}) for group in ("required", "optional"))
    return {
        name: (spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()
    }


def test_the_pack_registers_these_nodes_and_no_others(client: Client) -> None:
    infos = client.get("/object_info")
    ours = {i for i, info in infos.items() if info["python_module"] == f"custom_nodes.{PACK}"}
    assert ours == set(NODES)


@pytest.mark.parametrize("node_id", NODES)
def test_a_node_is_described(client: Client, node_id: str) -> None:
    info = client.object_info(node_id)
    assert info is not None
    assert info["category"] == "PFStorer"
    assert info["display_name"] == NODES[node_id]
    assert info["description"]
    without = [name for name, options in input_options(info).items() if not options.get("tooltip")]
    assert without == []


def test_the_pack_is_imported_fast(server: Server) -> None:
    times = re.findall(rf"([\d.]+) seconds: \S*{PACK}$", server.log(), flags=re.MULTILINE)
    assert len(times) == 1, "imported once, without failure"
    assert float(times[0]) <= IMPORT_SECONDS


def test_all_templates_are_listed(client: Client) -> None:
    assert len(TEMPLATES) >= 5 and all(name[0].isdigit() for name in TEMPLATES), "in this order"
    assert sorted(client.get("/api/workflow_templates")[PACK]) == TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_served_with_its_picture(client: Client, name: str) -> None:
    place = f"/api/workflow_templates/{PACK}/{quote(name)}"
    assert client.get(f"{place}.json")["nodes"]
    assert client.request(f"{place}.jpg").startswith(b"\xff\xd8")  # JPEG


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_the_values_and_slots_of_its_nodes(client: Client, name: str) -> None:
    workflow = json.loads((REPO / "example_workflows" / f"{name}.json").read_text())
    for node in workflow["nodes"]:
        if not node["type"].startswith("PFStorer"):
            continue
        info = client.object_info(node["type"])
        assert info is not None
        values = iter(node["widgets_values"])
        slots = []
        for group in ("required", "optional"):
            for key in info["input_order"].get(group, []):
                kind, *options = info["input"][group][key]
                if not isinstance(kind, list) and kind not in WIDGETS:
                    slots.append((key, kind))
                    continue
                value = next(values)
                if options and "min" in options[0]:
                    assert options[0]["min"] <= value <= options[0]["max"], key
                if options and options[0].get("control_after_generate"):
                    assert next(values) == "fixed"
        assert list(values) == []
        growing = {name for name, kind in slots if kind == GROWING}
        shown = []
        for slot in node["inputs"]:
            if "widget" in slot:  # with a label of its own
                continue
            name = slot["name"].partition(".")[0]
            one = (name, GROWING) if name in growing else (slot["name"], slot["type"])
            if one not in shown:
                shown.append(one)
        assert shown == slots
        given = [(slot["name"], slot["type"]) for slot in node["outputs"]]
        assert given == list(zip(info["output_name"], info["output"], strict=True))


def test_blueprints_are_listed(client: Client) -> None:
    listed = client.get("/api/global_subgraphs")
    ours = {e["name"] for e in listed.values() if e["info"]["node_pack"] == f"custom_nodes.{PACK}"}
    assert ours == BLUEPRINTS


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", NODES)
def test_a_help_page_names_all_inputs_and_outputs(
    client: Client, node_id: str, language: str
) -> None:
    place = f"/extensions/{PACK}/docs/{node_id}"
    english = language == ENGLISH  # which is what other languages get too
    page = client.request(f"{place}.md" if english else f"{place}/{language}.md").decode()
    info = client.object_info(node_id)
    assert info is not None
    names = [*input_options(info), *info["output_name"]]
    if english:
        names += [label["name"] for label in node_labels(info)["inputs"].values()]
    assert [name for name in names if not re.search(rf"\b{name}\b", page)] == []
    served = client.get("/i18n")[language]["nodeDefs"][node_id]
    translated = [label["name"] for label in served["inputs"].values()]
    assert [name for name in translated if name not in page] == []


@pytest.mark.parametrize("node_id", NODES)
def test_the_english_labels_are_those_of_the_node(client: Client, node_id: str) -> None:
    info = client.object_info(node_id)
    assert info is not None
    assert client.get("/i18n")[ENGLISH]["nodeDefs"][node_id] == node_labels(info), (
        "run tools/labels.py"
    )
