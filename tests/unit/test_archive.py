"""What the registry's archive holds: all that the plugin imports and serves, and little else."""

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

from registry_archive import archived_files
from setup_host import REPO

LARGEST = 46_000_000  # bytes; the bundled weights are 41 million of them
LARGEST_REST = 3_500_000  # bytes: all but the bundled weights
SERVED = ("nodes", "pfstorer_core", "locales", "example_workflows", "subgraphs")
LEFT_OUT = ("tests", "tools", "benchmarks", "docs/images", ".ci", ".github")
NEEDED = (
    "__init__.py",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "docs/mini_restorer.md",  # the licence and origin of the bundled weights
    "docs/mini_embedding.md",
    "docs/head_detector.md",
    "pfstorer_core/assets/mini_restorer.safetensors",
    "pfstorer_core/assets/mini_embedding.safetensors",
    "pfstorer_core/assets/head_detector.safetensors",
)
COMMANDS = ("demo", "restore_person", "run_workflow", "setup_host", "train_base")  # README's
BARE = ("scripts.", "tools.", "tests.", "example_workflows.api.")  # imported without a folder


def files_of(module: str) -> set[str]:
    """Returns the files of this project that a dotted name may stand for."""
    path = module.replace(".", "/")
    places = {f"{path}.py", f"{path}/__init__.py"}
    return {place for place in places if (REPO / place).is_file()}


def imported(path: str) -> Iterator[str]:
    """Yields the files of this project that a file imports.

    Scripts and examples name each other without a folder, as they lie on the path.
    """
    here = PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse((REPO / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            for folder in ("", *BARE):
                yield from files_of(folder + name)


def test_all_that_the_plugin_serves_is_in_the_archive() -> None:
    archive = set(archived_files())
    there = [
        path.relative_to(REPO).as_posix()
        for folder in SERVED
        for path in (REPO / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert [path for path in there if path not in archive] == []
    assert [path for path in NEEDED if path not in archive] == []
    assert [name for name in COMMANDS if f"scripts/{name}.py" not in archive] == []


def test_what_a_module_imports_of_the_project_is_in_the_archive() -> None:
    archive = set(archived_files())
    modules = [path for path in archive if path.endswith(".py")]
    missing = {path: set(imported(path)) - archive for path in modules}
    assert {path: files for path, files in missing.items() if files} == {}


def test_imports_are_found() -> None:
    assert "scripts/picture_files.py" in set(imported("scripts/demo.py"))
    assert "example_workflows/api/comfyui_queue.py" in set(imported("scripts/comfyui_client.py"))
    assert "pfstorer_core/errors.py" in set(imported("pfstorer_core/pictures/photos.py"))
    assert "nodes/restore.py" in set(imported("nodes/__init__.py"))
    assert "tools/evaluate.py" in set(imported("tools/evaluate_trust.py"))


def test_each_template_comes_with_its_picture() -> None:
    templates = [
        PurePosixPath(path) for path in archived_files() if path.startswith("example_workflows/")
    ]
    names = {path.stem for path in templates if path.match("example_workflows/*.json")}
    assert names and names == {path.stem for path in templates if path.suffix == ".jpg"}


def test_what_only_the_makers_need_is_left_out() -> None:
    held = [path for path in archived_files() if path.startswith(LEFT_OUT)]
    assert held == []
    assert [path for path in archived_files() if path.startswith(".")] == []


def test_the_archive_is_small() -> None:
    sizes = {path: (REPO / path).stat().st_size for path in archived_files()}
    weights = sum(size for path, size in sizes.items() if path.endswith(".safetensors"))
    assert sum(sizes.values()) <= LARGEST
    assert sum(sizes.values()) - weights <= LARGEST_REST


def test_names_are_such_as_the_publishing_tool_reads() -> None:
    # It reads the list that `git ls-files` prints, which puts other names into quotes.
    assert [path for path in archived_files() if not path.isascii() or '"' in path] == []
