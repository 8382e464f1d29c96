"""No file, function or list of parameters of the plugin is longer than one reads at a time."""

import ast
from collections.abc import Iterator
from pathlib import Path

from setup_host import REPO

FILES = sorted(
    path for folder in ("pfstorer_core", "nodes") for path in (REPO / folder).rglob("*.py")
)
LARGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 350, 60, 6
# What ComfyUI calls, with arguments that it chooses; a schema is one long description.
CALLED_BY_COMFYUI = ("execute", "validate_inputs", "fingerprint_inputs")
DESCRIPTIONS = ("define_schema",)
WRAPPED = "executor"  # first parameter of what ComfyUI calls in place of one of its functions
LAYER = {"dtype", "device", "operations"}  # all three, as ComfyUI's layers take them
# Public functions of few parameters that must be given, and others that may.
BY_DESIGN = {
    "pfstorer_core/host/people/evidence.py: match_people",
    "pfstorer_core/host/patch/apply_identity.py: apply_identity",
    "pfstorer_core/host/people/personalize.py: personalize_people",
    "pfstorer_core/host/restoring/restore.py: restore",
    "pfstorer_core/host/train/identity.py: train_identity",
    "pfstorer_core/measures/comparison.py: compare",
    "pfstorer_core/training/autoencoder.py: decoder_objective",
    "pfstorer_core/training/feed.py: PairFeed.__init__",
    "pfstorer_core/training/identity.py: build_photo_pool",
}


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yields all functions of a module with their names, such as `Class.method`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{within}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, within)


def parameters(function: ast.FunctionDef) -> list[str]:
    """Returns the names that a function is given, but for its own object and ComfyUI's choice."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names = [name for name in names if name not in ("self", "cls")]
    if function.name in CALLED_BY_COMFYUI or WRAPPED in names[:1]:
        return []
    return [name for name in names if not (set(names) >= LAYER and name in LAYER)]


def needed(function: ast.FunctionDef) -> list[str]:
    """Returns the parameters that have to be given."""
    given = function.args
    named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    optional = {a.arg for a, default in named if default is not None}
    if given.defaults:
        optional |= {a.arg for a in given.args[-len(given.defaults) :]}
    return [name for name in parameters(function) if name not in optional]


def code_lines(function: ast.FunctionDef) -> int:
    """Returns the lines of a function without those of its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def offences(path: Path) -> dict[str, int]:
    """Returns what is too long in a file, and how long it is."""
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(REPO).as_posix()
    found = {}
    if (lines := len(text.splitlines())) > LARGEST_FILE:
        found[f"{place}: lines"] = lines
    for name, function in functions(ast.parse(text)):
        lines = code_lines(function)
        if function.name not in DESCRIPTIONS and lines > LONGEST_FUNCTION:
            found[f"{place}: {name}: lines"] = lines
        designed = f"{place}: {name}" in BY_DESIGN
        taken = (needed if designed else parameters)(function)
        if len(taken) > MOST_PARAMETERS:
            found[f"{place}: {name}: parameters"] = len(taken)
    return found


def test_nothing_is_too_long() -> None:
    found = {what: size for path in FILES for what, size in offences(path).items()}
    assert found == {}, "part these"


def test_the_exceptions_by_design_are_there_and_long() -> None:
    there = {
        f"{path.relative_to(REPO).as_posix()}: {name}": len(parameters(function))
        for path in FILES
        for name, function in functions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert all(there.get(name, 0) > MOST_PARAMETERS for name in BY_DESIGN)


def test_what_is_too_long_is_found() -> None:
    names = ", ".join("abcdefg")
    (_, plain), (_, own), (_, hook), (_, layer) = functions(
        ast.parse(
            f"def f({names}): ...\n"
            "class C:\n"
            "    def f(self, a, b, c, d, e, *, g): ...\n"
            f"def hook(executor, {names}): ...\n"
            "def layer(a, b, c, d, e, dtype, device, operations): ...\n"
        )
    )
    assert [len(parameters(f)) for f in (plain, own, hook, layer)] == [7, 6, 0, 5]
    ((_, named),) = functions(ast.parse("def f(a, *, b, c=None, d=None): ..."))
    assert needed(named) == ["a", "b"]
