"""Names from prompts that try to leave the plugin's folders, here and through a server's API."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .report import Outcome, Settings, Tally

FOLDERS = "pfstorer_identities", "pfstorer_restorers", "pfstorer_embeddings", "checkpoints", "vae"
LEAVING = (  # must be refused wherever they are given; {outside} is a folder beside that of models
    "..",
    "../secret",
    "../secret.safetensors",
    "../../secret.safetensors",
    "a/../../secret.safetensors",
    "a/./../../../secret.safetensors",
    "..\\secret.safetensors",
    "a\\..\\..\\secret.safetensors",
    "%2e%2e/secret.safetensors/..",
    "{outside}/secret.safetensors",
    "/{outside}/secret.safetensors",
    "//server/share/secret.safetensors",
    "\\\\server\\share\\secret.safetensors",
    "\\\\?\\C:\\secret.safetensors",
    "C:\\secret.safetensors",
    "C:secret.safetensors",
    "file:///etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "/dev/full",
    "",
    " ",
    ".",
    "./",
    "/",
    "a//b",
    "a/",
    "person\0.safetensors",
    "\0",
    "line\nbreak",
    "tab\there",
    "\x1b[31mred",
    "right\u202eleft",
    "zero\u200bwidth",
    "half\ud800",
    "CON",
    "nul.safetensors",
    "folder/COM1",
    "LPT\u00b9",
    "CONIN$",
    "AUX .x",
    "dot.",
    "space ",
    " space",
    "a:b",
    "a*?",
    "<b>",
    'quo"te',
    "a|b",
    "a" * 300,
    "\u00e4" * 150,
    "/".join(["folder"] * 300),
)
ODD = (  # may be used, in the folder
    "{name}",
    "%date%",
    "%(name)s",
    "$HOME",
    "~",
    "~root",
    "`id`",
    "$(id)",
    "; rm -rf x",
    "-rf",
    "--help",
    "Zo\u00eb",
    "Zoe\u0308",
    "\u5f20\u4f1f",
    "\U0001f600",
    "a.b.c",
    "family/Ada",
    "family/deep/er/Ada",
    "family\\Bo",
    "Twin",
    "twin",
    "TWIN",
    "console",
    "com10",
    ".hidden",
    "x.safetensors.safetensors",
    "a" * 180,
)


# What is posted: the node, its input that names something, and the others; then who feeds them.
POSTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "file to load": ("PFStorerLoadIdentity", "file_name", {}),
    "name to save": (
        "PFStorerSaveIdentity",
        "file_name",
        {"adapter": ["load", 0], "overwrite": True},
    ),
    "restorer": ("PFStorerLoadBaseRestorer", "restorer", {"checkpoint": "bundled in restorer"}),
    "checkpoint": ("PFStorerLoadBaseRestorer", "checkpoint", {"restorer": "mini (bundled)"}),
    "CFW file": ("PFStorerLoadCFW", "cfw", {}),
    "person to train": (
        "PFStorerTrainIdentityAdapter",
        "name",
        {"model": ["base", 0], "vae": ["base", 2], "photos": ["photo", 0]}
        | {"preset": "quick", "seed": 0, "steps": 1, "views_per_photo": 1},
    ),
}
OTHERS = {
    "load": {
        "class_type": "PFStorerLoadIdentity",
        "inputs": {"file_name": "good.safetensors"},
    },
    "base": {
        "class_type": "PFStorerLoadBaseRestorer",
        "inputs": {"restorer": "mini (bundled)", "checkpoint": "bundled in restorer"},
    },
    "photo": {
        "class_type": "EmptyImage",
        "inputs": {"width": 128, "height": 128, "batch_size": 1, "color": 0},
    },
}


def run(settings: Settings) -> list[Outcome]:
    """Gives the names to the plugin; the full form posts them to a server as well."""
    outcomes = [_saving(settings), _reading(settings), _links(settings)]
    return outcomes if settings.quick else [*outcomes, *_posted(settings)]


def _saving(settings: Settings) -> Outcome:
    """Names of adapters to save, and of people to train."""
    from pfstorer_core.host.load import folders
    from pfstorer_core.identities.adapter import IdentityAdapter

    tally = Tally(
        "Hostile names: adapters and people",
        "Refused in one sentence, or written in the folder, never replaced and read again",
    )
    with _models(settings.workspace / "saving") as base:
        root = base / "models" / FOLDERS[0]
        adapter = IdentityAdapter.load(base / "secret.safetensors")
        before = _tree(base, root)
        for name in (*LEAVING, *ODD):
            given = name.replace("{outside}", str(base))
            for prefix in ("", "unfinished/"):
                before_root = _tree(root, None)

                def save(given: str = given, prefix: str = prefix) -> None:
                    path = folders.identity_path(prefix + given, free=True)
                    adapter.save(path)
                    listed = folders.identity_name(path)
                    if IdentityAdapter.load(folders.find_identity(listed)).info != adapter.info:
                        raise ValueError("another adapter was read")

                failure = _refused(save, must=name in LEAVING)
                now = _tree(root, None)
                if any(now.get(file) != digest for file, digest in before_root.items()):
                    failure = "another file was replaced"
                if _tree(base, root) != before:
                    failure = "something was written outside"
                tally.add(None if failure is None else f"{prefix}{name!r}: {failure}")
    return tally.outcome()


def _reading(settings: Settings) -> Outcome:
    """Names of files to read."""
    from pfstorer_core.host.load import folders

    find = (
        folders.find_identity,
        folders.restorer_path,
        folders.checkpoint_path,
        folders.vae_path,
        folders.embedding_path,
    )
    tally = Tally("Hostile names: files to read", "Nothing outside the folder is found")
    with _models(settings.workspace / "reading") as base:
        for name in LEAVING:
            for function in find:
                given = name.replace("{outside}", str(base))
                failure = _refused(lambda f=function, given=given: f(given), must=True)
                tally.add(failure and f"{function.__name__} {name!r}: {failure}")
    return tally.outcome()


def _links(settings: Settings) -> Outcome:
    """Links: folders of models and files in them often are some."""
    from pfstorer_core.host.load import folders
    from pfstorer_core.identities.adapter import IdentityAdapter

    tally = Tally(
        "Links in the models folder",
        "A linked folder of identities works, links in it can be read, none is written through",
    )
    with _models(settings.workspace / "links") as base:
        root = base / "models" / FOLDERS[0]
        moved = base / "elsewhere"
        root.rename(moved)
        root.symlink_to(moved, target_is_directory=True)
        adapter = IdentityAdapter.load(base / "secret.safetensors")
        away = base / "away"
        away.mkdir()
        shutil.copy(base / "secret.safetensors", away / "theirs.safetensors")
        (moved / "away").symlink_to(away, target_is_directory=True)
        (moved / "linked.safetensors").symlink_to(away / "theirs.safetensors")
        (moved / "loop").symlink_to(moved / "loop")
        (moved / "up").symlink_to(base, target_is_directory=True)
        before = _tree(away, None)

        adapter.save(folders.identity_path("new"))
        tally.add(None if (moved / "new.safetensors").is_file() else "not saved in a linked folder")
        for name in ("new", "linked", "away/theirs"):
            info = IdentityAdapter.load(folders.find_identity(f"{name}.safetensors")).info
            tally.add(None if info == adapter.info else f"{name} cannot be read")
        for name in ("away/new", "away/theirs", "up/new", "loop/new", "away/deeper/new"):
            failure = _refused(lambda name=name: adapter.save(folders.identity_path(name)), True)
            tally.add(failure and f"{name}: {failure}")
        adapter.save(folders.identity_path("linked"))
        replaced = (moved / "linked.safetensors").is_symlink()
        tally.add("a linked file was written through" if replaced else None)
        tally.add(None if _tree(away, None) == before else "something was written outside")
    return tally.outcome()


def _posted(settings: Settings) -> Iterator[Outcome]:
    """Prompts with hostile names, posted to a server as no page would."""
    from comfyui_client import Client
    from comfyui_queue import PromptRefused

    from .originals import write_original
    from .served import new_server

    base = settings.workspace / "server"
    server = new_server(base)
    root = base / "models" / FOLDERS[0]
    root.mkdir(parents=True)
    write_original("adapter", root / "good.safetensors")
    for place in (base, base / "models"):
        write_original("adapter", place / "secret.safetensors")
    with server, Client(server.url) as client:
        before = _tree(base, root, skipped=("user", "temp", "output"))
        for what, (node, name_input, inputs) in POSTED.items():
            tally = Tally(
                f"Hostile names posted to the API: {what}", "Refused, nothing is written outside"
            )
            for name in LEAVING:
                value = name.replace("{outside}", str(base))
                prompt = dict(OTHERS)
                prompt["node"] = {"class_type": node, "inputs": inputs | {name_input: value}}
                prompt["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
                try:
                    done = client.run(prompt)
                    errors = done.of_type("execution_error")
                    told = [str(error["exception_message"]).strip() for error in errors]
                    named = any("name of an identity" in x or "leads out" in x for x in told)
                    failure = None if named else f"{name!r}: {done.status} {told}"
                except PromptRefused:  # not one of the files that ComfyUI listed
                    failure = None
                tally.add(failure)
            if _tree(base, root, skipped=("user", "temp", "output")) != before:
                tally.add("something was written outside")
            yield tally.outcome()


@contextmanager
def _models(base: Path) -> Iterator[Path]:
    """Points ComfyUI's model folders into `base`, with a file beside them that none may read."""
    import folder_paths

    from .originals import write_original

    known = folder_paths.folder_names_and_paths
    kept = {name: known.get(name) for name in FOLDERS}
    for name in FOLDERS:
        folder = base / "models" / name
        folder.mkdir(parents=True)
        known[name] = ([str(folder)], {".safetensors", ".ckpt"})
    for place in (base, base / "models"):
        write_original("adapter", place / "secret.safetensors")
    folder_paths.filename_list_cache.clear()
    try:
        yield base
    finally:
        for name, paths in kept.items():
            if paths is None:
                del known[name]
            else:
                known[name] = paths
        folder_paths.filename_list_cache.clear()


def _refused(act: Any, must: bool) -> str | None:
    """Says what is wrong with how a name was taken or refused."""
    from pfstorer_core.errors import PFStorerError

    try:
        act()
    except PFStorerError as error:
        sentence = str(error)
        clear = len(sentence.splitlines()) == 1 and sentence.isprintable()
        return None if clear and sentence.endswith(".") else f"no sentence: {sentence!r}"
    except Exception as error:
        return f"a raw {type(error).__name__}: {str(error)[:100]}"
    return "it was taken" if must else None


def _tree(
    folder: Path, without: Path | None, skipped: tuple[str, ...] = ()
) -> dict[str, str | None]:
    """Returns digests of all files of a folder, but for another folder in it, by path."""
    found: dict[str, str | None] = {}
    for path in sorted(folder.rglob("*")):
        part = path.relative_to(folder)
        if (without is not None and path.is_relative_to(without)) or part.parts[0] in skipped:
            continue
        is_file = path.is_file() and path.suffix == ".safetensors"
        found[str(part)] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else None
    return found
