import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from comfyui_server import PACK
from environments import requirement_lines, requirement_name
from PIL import Image
from setup_host import DEFAULT_VERSION, RELEASES, REPO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
URLS = PYPROJECT["project"]["urls"]
HOME = URLS["Repository"].removeprefix("https://github.com/")  # owner and name
ICON = PYPROJECT["tool"]["comfy"]["Icon"]
GITHUB = REPO / ".github"
WORKFLOWS = GITHUB / "workflows"
PLACES = [  # that may name the project's address
    REPO / "pyproject.toml",
    *sorted(REPO.glob("*.md")),
    *sorted(REPO.glob("docs/*.md")),
    *sorted(REPO.glob("nodes/web/docs/**/*.md")),
    *sorted(GITHUB.rglob("*.yml")),
]
ADDRESS = re.compile(r"(?:github|raw\.githubusercontent)\.com/([\w.-]+/[\w.-]*\w)")


def read_yaml(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # "on" stays a string


def test_the_registry_and_the_managers_read_the_same_requirements() -> None:
    assert requirement_lines(REPO / "requirements.txt") == PYPROJECT["project"]["dependencies"]


def test_torch_is_left_to_comfyui() -> None:
    names = {requirement_name(line) for line in requirement_lines(REPO / "requirements.txt")}
    assert not names & {"torch", "torchvision", "torchaudio", "numpy"}


def test_the_pack_is_tested_under_its_registry_name() -> None:
    assert PYPROJECT["project"]["name"] == PACK


def test_the_supported_floor_is_a_release_that_the_matrix_runs() -> None:
    floor = PYPROJECT["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    assert floor in RELEASES
    assert DEFAULT_VERSION in RELEASES


def test_every_place_names_the_same_address() -> None:
    named = {path: set(ADDRESS.findall(path.read_text(encoding="utf-8"))) for path in PLACES}
    wrong = {path.name: homes for path, homes in named.items() if homes - {HOME}}
    assert wrong == {}
    for path in (
        "README.md",
        ".github/ISSUE_TEMPLATE/bug.yml",
        ".github/ISSUE_TEMPLATE/config.yml",
    ):
        assert named[REPO / path] == {HOME}, path
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert f"git clone https://github.com/{HOME}\n" in readme
    only_here = read_yaml(WORKFLOWS / "publish.yml")["jobs"]["version"]["if"]
    assert f"github.repository_owner == '{HOME.split('/')[0]}'" in only_here


def test_a_clone_has_the_name_that_the_template_browser_shows() -> None:
    assert HOME.split("/")[1] == PACK


def test_the_registry_gets_the_urls_that_it_reads() -> None:
    assert set(URLS) == {"Repository", "Documentation", "Issues", "Changelog"}
    for name in ("Documentation", "Changelog"):
        assert (REPO / URLS[name].split("/blob/main/")[1]).is_file()


def test_the_icon_is_a_picture_that_the_registry_takes() -> None:
    start = f"https://raw.githubusercontent.com/{HOME}/main/"
    assert ICON.startswith(start)
    with Image.open(REPO / ICON.removeprefix(start)) as icon:
        assert icon.format in ("PNG", "JPEG", "GIF")
        width, height = icon.size
    assert width == height <= 400


def test_hosted_checks_are_those_of_any_machine() -> None:
    job = read_yaml(WORKFLOWS / "ci.yml")["jobs"]["checks"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert int(job["timeout-minutes"]) < 90
    assert "secrets." not in (WORKFLOWS / "ci.yml").read_text(encoding="utf-8")


def test_nothing_is_published_before_the_checks() -> None:
    jobs = read_yaml(WORKFLOWS / "publish.yml")["jobs"]
    assert jobs["checks"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in read_yaml(WORKFLOWS / "ci.yml")["on"]
    assert "checks" in jobs["publish"]["needs"]
    users = [name for name, job in jobs.items() if "REGISTRY_ACCESS_TOKEN" in str(job)]
    assert users == ["publish"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the runner's Python has tomllib")
@pytest.mark.parametrize(
    ("before", "by_hand", "publish"),
    [
        ("0.1.0", False, False),
        ("0.1.0", True, True),
        ("0.0.9", False, True),
        (None, False, False),  # a new branch: what was before is not known
    ],
)
def test_a_push_publishes_when_it_changes_the_version(
    before: str | None, by_hand: bool, publish: bool, tmp_path: Path
) -> None:
    (step,) = (
        step
        for step in read_yaml(WORKFLOWS / "publish.yml")["jobs"]["version"]["steps"]
        if "run" in step
    )
    commits = []
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], cwd=tmp_path, check=True)
    for version in (before or "0.1.0", "0.1.0"):
        text = f'[project]\nname = "a"\nversion = "{version}"\n'
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
        commit = [*git, "commit", "--quiet", "--allow-empty", "--message", version]
        subprocess.run(commit, cwd=tmp_path, check=True)
        found = subprocess.run(
            [*git, "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        commits.append(found.stdout.strip())
    output = tmp_path / "output"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "BEFORE": commits[0] if before else "0" * 40,
        "BY_HAND": str(by_hand).lower(),
        "GITHUB_OUTPUT": str(output),
    }
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    assert output.read_text(encoding="utf-8") == f"publish={str(publish).lower()}\n"


def test_the_bug_form_asks_for_what_is_needed() -> None:
    form = read_yaml(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")
    fields = {field["id"]: field for field in form["body"] if "id" in field}
    assert {"comfyui", "device", "report", "workflow", "photo"} <= set(fields)
    required = {
        name
        for name, field in fields.items()
        if field.get("validations", {}).get("required") == "true"
    }
    assert {"what", "comfyui", "device", "workflow", "photo"} <= required
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
    labels = [field["attributes"]["label"] for field in fields.values()]
    assert len(set(labels)) == len(labels)
