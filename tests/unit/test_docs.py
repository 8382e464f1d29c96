"""What the documents say is there: links, pictures, files and names."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from comfyui_server import PACK
from setup_host import REPO

CORE = REPO / "pfstorer_core"
TESTS = REPO / "tests"
README = REPO / "README.md"
FLOOR = re.search(
    r'requires-comfyui = ">=(.*)"', (REPO / "pyproject.toml").read_text(encoding="utf-8")
).group(1)
HELP = REPO / "nodes" / "web" / "docs"  # what links of all help pages are relative to, for ComfyUI
PAGES = sorted(
    [
        *REPO.glob("*.md"),
        *REPO.glob("docs/**/*.md"),
        *REPO.glob("benchmarks/*.md"),
        *REPO.glob("example_workflows/**/*.md"),
        *REPO.glob("nodes/web/docs/**/*.md"),
        *REPO.glob("tests/**/*.md"),
    ]
)
MODULES = [path.relative_to(CORE) for path in CORE.rglob("*.py")]
ROOMS = {path.parts[0] for path in MODULES if len(path.parts) > 1}
ANY_ROOM = "|".join(sorted(ROOMS))
OUR_FOLDERS = (
    f"benchmarks|docs|example_workflows|nodes|locales|pfstorer_core|scripts|tests|tools|{ANY_ROOM}"
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
WEB = re.compile(rf"/{PACK}/blob/main/([\w./-]+\w)(?:#([\w-]+))?")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
FILE = re.compile(rf"(?<![\w/.-])((?:{OUR_FOLDERS})/[\w./-]*[\w/])")
NAME = re.compile(
    rf"(?<![\w/.-])((?:(?:{ANY_ROOM})/(?:[a-z_]+/)*)?[a-z_]+)\.([A-Za-z_]\w*(?:\.[a-z_]\w*)?)"
)
TEST = re.compile(r"(?:([\w/]+\.py))?((?:::\w+)+)")


def page_id(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


@cache
def headings(page: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@cache
def names_in(module: Path) -> set[str]:
    """What a module defines at its top level, and the methods of its classes."""
    found: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                found |= {f"{name}.{x.name}" for x in body if isinstance(x, ast.FunctionDef)}
            case ast.Assign(targets=targets):
                found |= {x.id for target in targets for x in ast.walk(target) if hasattr(x, "id")}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.ImportFrom(names=names) if module.name == "__init__.py":
                found |= {alias.asname or alias.name for alias in names}
    return found


def module_file(path: str) -> Path | None:
    """The file of a module as the documents call it, relative to the core."""
    for place in (CORE / f"{path}.py", CORE / path / "__init__.py"):
        if place.is_file():
            return place
    return None


def missing_names(text: str) -> list[str]:
    """Names such as `host/patch/handlers.run_res_block` in code spans that do not exist.

    Those that do exist in a room must be named with it, else another could be meant.
    """
    missing = []
    for path, name in NAME.findall("\n".join(CODE.findall(text))):
        module = module_file(path)
        if name == "py":  # a file, for `missing_files`
            continue
        if module is None:
            if "/" in path or any(name in names_in(found) for found in CORE.rglob(f"{path}.py")):
                missing.append(f"{path}.{name}")
        elif name not in names_in(module):
            missing.append(f"{path}.{name}")
    return missing


def missing_files(text: str) -> list[str]:
    """Paths in code spans that do not exist, from the project's root, the core or the tests."""
    paths = FILE.findall("\n".join(CODE.findall(text)))
    return [
        path
        for path in paths
        if not any((root / path).exists() for root in (REPO, CORE, TESTS))
        and module_file(path.split(".")[0]) is None
    ]


@cache
def defined_tests(module: Path) -> set[str]:
    """The tests and test classes of a file."""
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return {x.name for x in nodes if isinstance(x, (ast.FunctionDef, ast.ClassDef))}


def missing_tests(text: str) -> list[str]:
    """Tests such as `unit/test_areas.py::test_it` in code spans that do not exist."""
    missing = []
    for file, names in TEST.findall("\n".join(CODE.findall(text))):
        known = {
            name
            for path in sorted(TESTS.rglob(file or "test_*.py"))
            for name in defined_tests(path)
        }
        missing += [file + names] if set(names.split("::")[1:]) - known else []
    return missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_pictures_of_a_page_exist(page: Path) -> None:
    broken = []
    folder = HELP if page.is_relative_to(HELP) else page.parent
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", place):
            continue
        target = (folder / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_and_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing_files(text) + missing_names(text) + missing_tests(text) == []


def test_links_to_pages_of_the_repository_lead_there() -> None:
    """Addresses on the web, in issue forms and the like: the file and the heading are here."""
    broken = []
    for path in [*PAGES, REPO / "pyproject.toml", *sorted((REPO / ".github").rglob("*.yml"))]:
        for place, anchor in WEB.findall(path.read_text(encoding="utf-8")):
            target = REPO / place
            if not target.is_file() or (anchor and anchor not in headings(target)):
                broken.append(f"{path.name}: {place}#{anchor}")
    assert broken == []


def test_the_readme_is_short_and_leads_on() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    links = {link.partition("#")[0] for link in LINK.findall(text)}
    wanted = ("guide", "results", "restorers", "nodes", "method", "architecture")
    assert {f"docs/{page}.md" for page in wanted} <= links
    for command in (
        "python3 scripts/demo.py --photos FOLDER --picture FILE",
        "python3 scripts/check.py",
        "pip install -r ",
    ):
        assert f"\n{command}" in text
    assert f"ComfyUI {FLOOR} or newer" in text


@pytest.mark.parametrize("page", sorted((REPO / "docs").glob("*.md")), ids=page_id)
def test_a_page_can_be_reached_from_the_readme(page: Path) -> None:
    reached, new = set(), {README}
    while new:
        reached |= new
        found = {
            (at.parent / link.partition("#")[0]).resolve()
            for at in new
            for link in LINK.findall(CODE.sub("", at.read_text(encoding="utf-8")))
            if link.partition("#")[0].endswith(".md") and ":" not in link
        }
        new = found - reached
    assert page.resolve() in {path.resolve() for path in reached}


def contents_and_sections(page: Path) -> tuple[list[str], list[str]]:
    text = page.read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(.*?)\]\(#", text, re.MULTILINE)
    return listed, re.findall(r"^## (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["guide", "results"])
def test_contents_list_the_sections(name: str) -> None:
    listed, sections = contents_and_sections(REPO / "docs" / f"{name}.md")
    assert listed == sections


def test_what_does_not_exist_is_found() -> None:
    sft = "restorers/stablesr/sft.SFTBlock"
    assert missing_names(f"`host/sites.no_such_thing`, `{sft}`") == ["host/sites.no_such_thing"]
    assert missing_names("`host/nowhere.thing`") == ["host/nowhere.thing"]
    assert missing_names(f"`{sft}.forward`, `{sft}.back`") == [f"{sft}.back"]
    assert missing_names("`sft.SFTBlock`, `torch.compile`") == ["sft.SFTBlock"]
    assert missing_files("`scripts/nothing.py` and `scripts/check.py`") == ["scripts/nothing.py"]
    assert missing_tests("`unit/test_docs.py::test_no`, `::missing_tests`") == [
        "unit/test_docs.py::test_no"
    ]
