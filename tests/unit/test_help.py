"""Help pages and labels: complete in every language, with true pictures and error sentences."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from labels import ENGLISH, compared, labels_of, other_languages
from setup_host import REPO

DOCS = REPO / "nodes" / "web" / "docs"  # what links in pages are relative to, for the frontend
PICTURES = DOCS / "pictures"
NODES = sorted(path.stem for path in DOCS.glob("*.md"))
LANGUAGES = [ENGLISH, *other_languages()]
ERRORS = {"en": "## Errors", "ja": "## エラー", "zh": "## 错误"}
LARGEST_PICTURE, LARGEST_ALL = 60_000, 1_500_000  # bytes
GAP = "\0"  # what an error's sentence fills in


def page(node_id: str, language: str) -> str:
    """Returns a help page; the English one is where the frontend looks for other languages too."""
    path = DOCS / f"{node_id}.md" if language == ENGLISH else DOCS / node_id / f"{language}.md"
    return path.read_text(encoding="utf-8")


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)


def texts(labels: object) -> Iterator[str]:
    if isinstance(labels, dict):
        for value in labels.values():
            yield from texts(value)
    else:
        yield str(labels)


@cache
def sentences() -> str:
    """Returns all texts in the code, with a gap for each value that is filled in."""
    found = []
    for path in [*REPO.glob("nodes/*.py"), *REPO.glob("pfstorer_core/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else GAP for p in node.values)
                found.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def quoted(text: str, language: str) -> list[str]:
    """Returns the error sentences, or parts of them, that a page quotes in italics."""
    errors = re.sub(r"`[^`]*`", "", text.partition(ERRORS[language])[2])
    return [" ".join(found.split()) for found in re.findall(r"(?<!\*)\*(?!\*)([^*]+)\*", errors)]


def test_the_languages_are_those_of_the_labels() -> None:
    assert LANGUAGES == ["en", "ja", "zh"]
    assert NODES == list(labels_of(ENGLISH))


@pytest.mark.parametrize("language", other_languages())
def test_a_language_has_all_labels_and_no_others(language: str) -> None:
    assert compared(labels_of(ENGLISH), language) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_hold_no_sign_that_the_frontend_reads_as_syntax(language: str) -> None:
    assert [text for text in texts(labels_of(language)) if set(text) & set("{}@|")] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", NODES)
def test_a_page_has_the_parts_and_pictures_of_the_english_one(node_id: str, language: str) -> None:
    text, english = page(node_id, language), page(node_id, ENGLISH)
    title = text.splitlines()[0]
    assert title == f"# {labels_of(language)[node_id]['display_name']}"
    assert pictures(text) == pictures(english)
    levels, wanted = (re.findall(r"^#+", t, flags=re.MULTILINE) for t in (text, english))
    assert levels == wanted
    names, wanted = (re.findall(r"^### .*", t, flags=re.MULTILINE) for t in (text, english))
    assert [re.findall(r"`(\w+)`", n) for n in names] == [re.findall(r"`(\w+)`", n) for n in wanted]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", NODES)
def test_the_errors_of_a_page_are_said_by_the_code(node_id: str, language: str) -> None:
    errors, code = quoted(page(node_id, language), language), sentences()
    parts = {error: [re.escape(part.strip()) for part in error.split("...")] for error in errors}
    assert [e for e in errors if not re.search(r"[^\n]*?".join(parts[e]), code)] == []
    assert len(errors) == len(quoted(page(node_id, ENGLISH), ENGLISH))


def test_all_pictures_are_there_small_and_shown() -> None:
    shown = {name for node_id in NODES for name in pictures(page(node_id, ENGLISH))}
    files = {f"pictures/{path.name}": path.stat().st_size for path in PICTURES.iterdir()}
    assert set(files) == shown
    assert max(files.values()) <= LARGEST_PICTURE
    assert sum(files.values()) <= LARGEST_ALL


def test_no_page_is_left_of_a_node_or_language_that_is_gone() -> None:
    others = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.md")}
    assert others == {f"{node_id}/{name}.md" for node_id in NODES for name in LANGUAGES[:0:-1]}
