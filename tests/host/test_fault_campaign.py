"""The fault campaign in its quick form, and its report."""

import os
import shutil
from pathlib import Path

import pytest
from comfyui_server import Server
from fault_campaign import full_report, main, part_names
from faults.report import Outcome, Settings, Tally, markdown_table

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and forks as on Linux and macOS")
SERVED = {"archives", "kills", "queueing"}  # parts that start servers of their own


def lost(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.fault}: {outcome.note}" for outcome in outcomes if outcome.lost]


@pytest.mark.slow
def test_writers_are_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    from faults import kills

    outcomes = kills.kill_writers(Settings(seed=1, quick=True, workspace=tmp_path))
    assert lost(outcomes) == []
    assert [outcome.tried for outcome in outcomes] == [15, 15]


@pytest.mark.slow
def test_queued_cancelled_and_deleted_prompts_give_what_they_give_alone(server: Server) -> None:
    from faults import queueing, served

    try:
        outcomes = queueing.measure(queueing.Trial(server), queued=6, cancels=1)
    finally:  # other tests look at what trainings leave on this server
        shutil.rmtree(served.training_runs(server), ignore_errors=True)
        for folder in ("faults", "unfinished/faults"):
            shutil.rmtree(served.identities(server) / folder, ignore_errors=True)
    assert lost(outcomes) == []
    assert [outcome.tried for outcome in outcomes] == [4, 3, 1, 1, 1, 2]


@pytest.mark.slow
def test_parts_without_a_server_lose_nothing_by_command(tmp_path: Path) -> None:
    names = [name for name in part_names() if name not in SERVED]
    path = tmp_path / "docs" / "faults.md"
    with pytest.raises(SystemExit) as ended:
        main(["--only", *names, "--quick", "--seed", "1", "--report", str(path)])
    report = path.read_text(encoding="utf-8")
    assert ended.value.code == 0, report
    assert " 0 lost.**" in report and f"--only {' '.join(names)} --quick" in report


def test_the_report_says_what_was_lost(tmp_path: Path) -> None:
    tally = Tally("A fault", "It holds")
    for failure in (None, "first | one", None, "second"):
        tally.add(failure)
    outcome = tally.outcome("2 MiB")
    assert (outcome.tried, outcome.survived, outcome.lost) == (4, 2, 2)
    fine = Outcome("Another", 1_000, 1_000, 0, "Held")
    table = markdown_table([([outcome, fine], 61.4)]).splitlines()
    assert table[2] == "| A fault | 4 | 2 | 2 | It holds. 2 MiB. LOST: first \\| one; second | 61 |"
    assert table[3] == "| Another | 1000 | 1000 | 0 | Held |  |"
    page = full_report([([outcome], 61.4), ([fine], 120)], "python it.py")
    assert "**1,004 tried, 1,002 survived, 2 lost.**" in page
    assert "`python it.py`" in page and "in 3 minutes" in page
    with pytest.raises(ValueError, match="do not make 3"):
        Outcome("Uncounted", 3, 1, 1, "")
