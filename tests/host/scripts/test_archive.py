"""An archive by command: Ray Data, a ComfyUI of the worker's own, and what kills leave."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from archives.photos import DAMAGES, draw
from archives.runs import WORKFLOW, Run, Setting, pictures, problems, rows
from archiving.host import ADAPTERS
from archiving.listing import OWN, REPORT
from archiving.pictures import read_bytes, read_original
from archiving.workflow import IDENTITIES, read_workflow, with_identities
from comfyui_client import TEXT_EVENT, Client
from comfyui_server import Server
from PIL import Image
from tiny_models import random_adapter, write_bundled
from torchvision.utils import save_image

from pfstorer_core import host
from pfstorer_core.drawn.groups import group_photo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="kills as on Linux and macOS"),
]
TINY = "tiny_archive.safetensors"
CHANGES = [f"1.restorer={TINY}", "3.steps=1"]
WHOLE = 16
SECONDS = 300.0  # for what takes some: a loaded machine starts ComfyUI slowly
ALL_ENDED_SOME_FAILED, STOPPED = 3, 130


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Drawn photos, one file of each kind of damage, and a folder with a tiny restorer."""
    folder = tmp_path_factory.mktemp("archive")
    assert draw(folder / "in", WHOLE, seed=3) == {}
    content = next(folder.rglob("*.jpg")).read_bytes()
    for number, damage in enumerate(DAMAGES.values()):
        place = folder / "in" / f"damaged {number}.jpg"
        place.write_bytes(damage(content, random.Random(number)))
    write_bundled(folder / "base" / "models" / "pfstorer_restorers" / TINY)
    changes = [part for change in CHANGES for part in ("--set", change)]
    return Setting(folder / "in", folder / "base", (*changes, "--workers", "1"))


def damaged(setting: Setting) -> dict[str, str]:
    return {path.name: path.name for path in setting.originals.glob("damaged*")}


def wait(until: Callable[[], bool], run: Run) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert run.process.poll() is None, run.log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline, run.log.read_text(errors="replace")[-4000:]
        time.sleep(0.05)


def test_a_run_that_is_told_to_stop_says_how_to_go_on(setting: Setting, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install -r requirements-archive.txt")
    run = Run(setting, tmp_path / "out")
    wait(lambda: bool(run.find("worker")), run)
    family = run.processes()
    run.process.terminate()
    code = run.process.wait(SECONDS)
    log = run.log.read_text(errors="replace")
    assert code == STOPPED, log[-4000:]
    assert "Stopped. Run the same command again to go on." in log
    assert (run.output / REPORT).is_file()
    assert psutil.wait_procs(family[1:], SECONDS)[1] == [], "nothing of it goes on"


def test_driver_and_worker_are_killed_and_nothing_is_lost_or_done_twice(
    setting: Setting, server: Server, client: Client, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="pip install -r requirements-archive.txt")
    before = pictures(setting.originals)
    output = tmp_path / "out"
    run = Run(setting, output)
    wait(lambda: len(finished(output)) >= 2, run)
    (own_comfyui,) = run.find("comfyui")
    run.kill()
    own_comfyui.wait(SECONDS)  # its guard ends it
    done = finished(output)

    run = Run(setting, output)
    wait(lambda: begun(run.find("comfyui")), run)
    (worker,) = run.find("worker")
    (own_comfyui,) = run.find("comfyui")
    worker.send_signal(signal.SIGKILL)  # before its ComfyUI is ready: one start less to wait for
    own_comfyui.wait(SECONDS)
    code = run.process.wait(SECONDS)

    log = run.log.read_text(errors="replace")
    assert code == ALL_ENDED_SOME_FAILED, log[-4000:]
    assert problems(output, setting.originals, damaged(setting)) == []
    assert f"{WHOLE} restored, {len(DAMAGES)} failed, 0 of other kinds" in log
    assert {path: finished(output)[path] for path in done} == done, "done once"
    assert pictures(setting.originals) == before
    assert list((output / OWN / "records").iterdir()) == []
    page = (output / REPORT).read_text(encoding="utf-8")
    assert page.count('class="pair"') == WHOLE
    failed = [row for row in rows(output).values() if row["state"] == "failed"]
    assert {row["attempts"] for row in failed} == {2}
    assert any("Done in" in row["report"] for row in rows(output).values() if row["report"])
    check_pixels(setting, server, client, output)


def begun(comfyui: list[psutil.Process]) -> bool:
    """Tells whether ComfyUI is on its way, and so has its guard."""
    return bool(comfyui) and comfyui[0].cpu_times().user > 1


def finished(output: Path) -> dict[str, tuple[int, int]]:
    """Returns which file each photo that is done became, by the photo's path."""
    found = {}
    for path, row in rows(output).items():
        if row["state"] == "done":
            status = (output / row["output"]).stat()
            found[path] = (status.st_ino, status.st_mtime_ns)
    return found


def check_pixels(setting: Setting, server: Server, client: Client, output: Path) -> None:
    """Checks that pictures are what the workflow makes of the photo without an archive."""
    write_bundled(server.base / "models" / "pfstorer_restorers" / TINY)
    workflow = read_workflow(WORKFLOW, CHANGES)
    lossless = [path for path in rows(output) if Path(path).suffix in (".png", ".tif", ".bmp")]
    compared = [path for path in lossless if rows(output)[path]["state"] == "done"][:3]
    for number, path in enumerate(compared):
        original = read_original(read_bytes(setting.originals / path), path)
        original.picture.save(server.base / "input" / f"archive{number}.png")
        run = client.run(workflow.of(f"archive{number}.png"))
        place = server.base / "temp" / run.images[0]["filename"]
        alone = np.asarray(Image.open(place).convert("RGB")).astype(int)
        archived = np.asarray(Image.open(output / path).convert("RGB")).astype(int)
        # The two servers may have different numbers of threads, and round differently.
        assert np.abs(archived - alone).max() <= 1
    assert len(compared) == 3


def test_people_are_compared_with_all_adapters_of_a_folder(
    server: Server, client: Client, tmp_path: Path
) -> None:
    restorer = write_bundled(server.base / "models" / "pfstorer_restorers" / TINY)
    people = tmp_path / "people"
    people.mkdir()
    model = host.load_base_restorer(restorer)[0]
    for seed, name in enumerate(("Ada", "Bob")):
        random_adapter(model, seed, name).save(people / f"{name}.safetensors")
    folder = server.base / "models" / ADAPTERS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IDENTITIES).symlink_to(people, target_is_directory=True)
    save_image(group_photo([1, 2], 128, 256, seed=1).picture, server.base / "input" / "two.png")

    workflow = with_identities(read_workflow(people_workflow(tmp_path)), people)[0]
    run = client.run(workflow.of("two.png"))
    assert run.status == "success", run.error
    report = "\n".join(data["text"] for data in run.of_type(TEXT_EVENT))
    assert "2 people found" in report
    for name in ("Ada", "Bob"):
        assert f"{name} " in report
    assert len(run.outputs[workflow.result]["images"]) == 1


def people_workflow(folder: Path) -> Path:
    """Writes a workflow with Restore People, as exported with the adapters of others."""
    prompt = read_workflow(WORKFLOW.with_name("archive_people.json"), CHANGES).prompt
    prompt["3"]["inputs"] |= {"adapters.adapter_1": ["9", 0], "photos.photos_1": ["2", 0]}
    path = folder / "people.json"
    path.write_text(json.dumps(prompt), encoding="utf-8")
    return path
