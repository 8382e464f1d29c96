"""Restores folders of photos with a workflow, on one machine or many; goes on where it stopped.

    python scripts/archive.py --input FOLDER --output FOLDER --workflow API.json

Runs in ComfyUI's environment with the packages of `requirements-archive.txt`; `docs/archive.md`
tells more. Each worker has a ComfyUI of its own. Originals are only read. Run the same command
again to go on: what is done stays, what is missing, has changed or failed is done.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
from comfyui_client import ComfyUIError
from setup_host import REPO, find_comfyui

sys.path.append(str(REPO))

from archiving.journal import Journal
from archiving.listing import OWN, check_folders, files_in
from archiving.manifest import Manifest
from archiving.page import write_page
from archiving.pictures import FORMATS
from archiving.progress import Progress
from archiving.results import DONE, FAILED, OTHER, WAITING
from archiving.workflow import Workflow, read_workflow, settings_digest, with_identities

from pfstorer_core.errors import PFStorerError, first_line

SOME_FAILED, STOPPED = 3, 130  # how the script ends, beside 0 and 1


def parser() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--input", type=Path, metavar="FOLDER", required=True, help="photos, also in subfolders")
    add("--output", type=Path, metavar="FOLDER", required=True, help="for the restored pictures")
    add("--workflow", type=Path, metavar="API.json", required=True, help="workflow in API format")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input of the workflow; may be repeated",
    )
    add(
        "--identities",
        type=Path,
        metavar="FOLDER",
        help="adapters of the people who may be in the photos, for a workflow with Restore People",
    )
    add(
        "--format",
        choices=["same", *FORMATS],
        default="same",
        help="of the restored files (default: each as its original)",
    )
    add("--quality", type=int, default=95, help="of JPEG and WebP files, 1 to 100 (default: 95)")
    add("--address", help="of a Ray cluster, such as 'auto'; without it, this machine alone")
    add("--workers", type=int, help="at most (default: one per GPU, or per machine without any)")
    add("--gpus-per-worker", type=float, help="a fraction shares a GPU (default: 1)")
    add("--cpus-per-worker", type=float, help="processor cores (default: 1 beside a GPU, else all)")
    add("--timeout", type=float, default=3600, help="seconds for a photo (default: 3600)")
    add("--shown", type=int, default=200, help="photos in the report page (default: 200)")
    add("--comfyui", type=Path, default=find_comfyui(), help="folder of ComfyUI (default: found)")
    add(
        "--base",
        type=Path,
        help="folder with the models and custom_nodes to use (default: ComfyUI's own)",
    )
    return command


def restore(options: argparse.Namespace) -> int:
    """Does all that is to do, and returns how the script ends.

    Raises:
        PFStorerError: the archive cannot be begun or cannot go on.
    """
    workflow = read_workflow(options.workflow, options.set)
    originals, output = options.input.absolute(), options.output.absolute()
    check_folders(originals, output)
    identities = {}
    if options.identities is not None:
        workflow, identities = with_identities(workflow, options.identities)
    described = workflow.described(quality=options.quality, identities=identities)
    journal = Journal(output)
    with _alone(output):
        journal.prepare()
        with Manifest(output, settings_digest(described)) as manifest:
            manifest.note_settings(described)
            manifest.take_over(journal)
            manifest.update(files_in(originals, output), options.format)
            try:
                _run(options, workflow, manifest, journal)
            except (PFStorerError, KeyboardInterrupt):
                with contextlib.suppress(PFStorerError):  # what ended the run is told
                    write_page(manifest, originals, output, options.shown)
                raise
            page = write_page(manifest, originals, output, options.shown)
            counts = manifest.counts()
    told = f"{counts[DONE]} restored, {counts[FAILED]} failed, {counts[OTHER]} of other kinds"
    print(f"{told}: {page}")
    return SOME_FAILED if counts[FAILED] else 0


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Holds an output folder for a block, so that no second run writes into it.

    Raises:
        PFStorerError: another run holds it, or it cannot be written to.
    """
    lock = filelock.FileLock(output / OWN / "lock", timeout=0)
    try:
        (output / OWN).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise PFStorerError(
            f"Another run writes into '{output}'; wait for its end, or stop it."
        ) from error
    except OSError as error:
        raise PFStorerError(
            f"Nothing can be written to '{output}' ({first_line(error)}); free some space, or give "
            "a folder that may be written to."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _run(
    options: argparse.Namespace, workflow: Workflow, manifest: Manifest, journal: Journal
) -> None:
    counts = manifest.counts()
    photos = counts[DONE] + counts[WAITING]
    print(f"{photos} photos, {counts[DONE]} of them done before", flush=True)
    if not counts[WAITING]:
        return
    from archiving.engine import Machines, run
    from archiving.host import Place
    from archiving.worker import Job

    identities = options.identities and options.identities.absolute()
    base = options.base or options.comfyui
    place = Place(options.comfyui, base.absolute(), options.timeout, identities)
    job = Job(
        options.input.absolute(),
        options.output.absolute(),
        workflow,
        manifest.settings,
        options.quality,
        place,
        os.environ.get("PYTHONPATH"),
    )
    machines = Machines(
        options.address, options.workers, options.gpus_per_worker, options.cpus_per_worker
    )
    progress = Progress(photos, counts[DONE], journal.count)
    began = time.monotonic()
    try:
        run(job, manifest, journal, machines, progress)
    finally:
        progress.close()
        print(f"{(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def main() -> None:
    """Reads the command line and restores."""
    command = parser()
    options = command.parse_args()
    if options.comfyui is None:
        command.error("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    if not 1 <= options.quality <= 100 or options.shown < 0:
        command.error("--quality is 1 to 100, --shown 0 or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: what is done is kept
    try:
        sys.exit(restore(options))
    except ModuleNotFoundError as missing:
        if missing.name != "ray":
            raise
        sys.exit("error: Ray is missing; install it: pip install -r requirements-archive.txt")
    except (PFStorerError, ComfyUIError) as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on.")
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
