"""The tally of a blind test: votes read, checked, decoded and counted with intervals."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pfstorer_core.errors import PFStorerError

from .page import Page

COLUMNS = ("page", "voter", "trial", "question", "left", "right", "choice", "seconds")
CHOICES = {"left": 1.0, "none": 0.5, "right": 0.0}  # share of a vote that the left method gets
CONFIDENCE = 0.95
RESAMPLES = 4000
NOTE = (
    "Share: a vote of no difference counts half for each. Intervals are of 95%: the wider of "
    "Wilson's, which takes votes as independent, and a bootstrap that draws voters and pictures "
    "anew. Repeated screens count for consistency alone. With fewer than about five voters an "
    "interval speaks of these voters."
)


@dataclass(frozen=True)
class Vote:
    """One answer, decoded.

    Attributes:
        voter: who.
        question: the question's text.
        picture: the picture's name.
        left: method on the left.
        right: method on the right.
        choice: "left", "right" or "none".
        seconds: from the question's appearance to the answer.
        key: page, screen and question, for finding the answers of a repeated screen.
        repeats: the key of the first showing, for a repeat.
    """

    voter: str
    question: str
    picture: str
    left: str
    right: str
    choice: str
    seconds: float
    key: tuple[str, int, int]
    repeats: tuple[str, int, int] | None

    @property
    def preferred(self) -> str | None:
        """The method that was chosen, None for no difference."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    def share(self, method: str) -> float:
        """Returns what this vote gives to one of its two methods: 1, 0.5 or 0."""
        left = CHOICES[self.choice]
        return left if method == self.left else 1.0 - left


def read_votes(paths: Sequence[Path], pages: Sequence[Page]) -> list[Vote]:
    """Reads files of votes and decodes them with their pages.

    Raises:
        PFStorerError: a file is no file of votes, a vote is of another page, of an unknown trial,
            or there twice.
    """
    known = {page.digest: page for page in pages}
    votes: list[Vote] = []
    seen: dict[tuple[str, tuple[str, int, int]], Path] = {}
    for path in paths:
        for line, row in _rows(path):
            vote = _decode(row, known, f"{path}, line {line},")
            mark = vote.voter, vote.key
            if mark in seen:
                raise PFStorerError(
                    f"{path}, line {line}, has a second vote of {vote.voter!r} for trial "
                    f"{row['trial']!r} (the first is in {seen[mark]}); leave one file out, or give "
                    "different voters different names in the column 'voter'."
                )
            seen[mark] = path
            votes.append(vote)
    if not votes:
        raise PFStorerError("There is no vote in the given files; save them from the page again.")
    return votes


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PFStorerError(f"{path} cannot be read as votes ({error}).") from error
    header = text.split("\n", 1)[0]
    # Some spreadsheets save with the semicolon.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in header else ",")
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise PFStorerError(
            f"{path} has no column {missing[0]!r}; give a CSV file that the page saved."
        )
    try:
        return [(reader.line_num, {c: (row[c] or "").strip() for c in COLUMNS}) for row in reader]
    except csv.Error as error:
        raise PFStorerError(f"{path} cannot be read as votes ({error}).") from error


def _decode(row: dict[str, str], pages: dict[str, Page], where: str) -> Vote:
    page = pages.get(row["page"])
    if page is None:
        raise PFStorerError(
            f"{where} has a vote of the page {row['page']!r}, but the given page is "
            f"{' or '.join(map(repr, pages))}; give the page that was voted on with --page."
        )
    trials = {
        f"t{screen + 1}q{question + 1}": (screen, question)
        for screen in range(len(page.screens))
        for question in range(len(page.questions))
    }
    if row["trial"] not in trials:
        raise PFStorerError(
            f"{where} has a vote for the trial {row['trial']!r}, which the page does not have; "
            "give the file as the page saved it."
        )
    number, question = trials[row["trial"]]
    try:
        seconds = float(row["seconds"].replace(",", "."))
    except ValueError:
        seconds = -1.0
    codes = (row["left"], row["right"])
    if row["choice"] not in CHOICES or not 0.0 <= seconds < 1e9 or codes != page.codes[number]:
        raise PFStorerError(
            f"{where} was changed: it has the choice {row['choice']!r} between {codes[0]!r} and "
            f"{codes[1]!r} after {row['seconds']!r} seconds; give the file as the page saved it."
        )
    screen = page.screens[number]
    again = screen.repeat_of
    return Vote(
        voter=row["voter"] or "(no name)",
        question=page.questions[question],
        picture=screen.picture,
        left=screen.left,
        right=screen.right,
        choice=row["choice"],
        seconds=seconds,
        key=(page.digest, number, question),
        repeats=None if again is None else (page.digest, again, question),
    )


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Returns Wilson's interval of a share; successes may count halves.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = successes / count
    middle = share + z * z / (2 * count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    low, high = (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)
    return max(low, 0.0), min(high, 1.0)


def share_interval(
    voters: Sequence[str], pictures: Sequence[str], values: Sequence[float], seed: int = 0
) -> tuple[float, float, float]:
    """Returns (mean, low, high) of votes by voters who judged the same pictures.

    Voters and pictures are both drawn anew: all see the same pictures, so neither can be nested in
    the other, and a voter may have left some out. Where all agree a bootstrap sees no doubt at all,
    so the interval is never narrower than Wilson's.

    Args:
        voters: who gave each vote.
        pictures: on which picture.
        values: 1, 0.5 or 0 each, at least one.
        seed: of the draws.

    Source: Owen 2007, The pigeonhole bootstrap (arXiv 0712.1111).
    """
    rows = {name: number for number, name in enumerate(sorted(set(voters)))}
    columns = {name: number for number, name in enumerate(sorted(set(pictures)))}
    count = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    total = torch.zeros_like(count)
    for voter, picture, value in zip(voters, pictures, values, strict=True):
        count[rows[voter], columns[picture]] += 1.0
        total[rows[voter], columns[picture]] += value
    generator = torch.Generator().manual_seed(seed)

    def drawn(size: int) -> Tensor:
        """How often each of `size` is drawn, (RESAMPLES, size)."""
        index = torch.randint(size, (RESAMPLES, size), generator=generator)
        return torch.zeros(RESAMPLES, size, dtype=torch.float64).scatter_add_(
            1, index, torch.ones(RESAMPLES, size, dtype=torch.float64)
        )

    by_voter, by_picture = drawn(len(rows)), drawn(len(columns))
    votes = torch.einsum("rv,vp,rp->r", by_voter, count, by_picture)
    given = torch.einsum("rv,vp,rp->r", by_voter, total, by_picture)
    shares = (given / votes)[votes > 0]  # a draw may miss every vote where many are left out
    tails = torch.tensor([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], dtype=torch.float64)
    low, high = shares.quantile(tails).tolist()
    independent = wilson(sum(values), len(values))
    return sum(values) / len(values), min(low, independent[0]), max(high, independent[1])


def tally(votes: Sequence[Vote]) -> str:
    """Returns the tables of the votes as Markdown."""
    first = [vote for vote in votes if vote.repeats is None]
    questions = list(dict.fromkeys(vote.question for vote in votes))
    methods = sorted({method for vote in votes for method in (vote.left, vote.right)})
    parts = [
        f"{len(votes)} votes of {len({v.voter for v in votes})} voter(s) on "
        f"{len({v.picture for v in votes})} picture(s), {len(votes) - len(first)} of them on "
        "repeated screens.",
        _pair_table(first, questions, methods),
    ]
    if len(methods) > 2:
        parts.append(_method_table(first, questions, methods))
    parts.append(_voter_table(votes))
    return "\n\n".join([*parts, NOTE])


def _pair_table(votes: Sequence[Vote], questions: Sequence[str], methods: Sequence[str]) -> str:
    rows = []
    for question, (a, b) in itertools.product(questions, itertools.combinations(methods, 2)):
        chosen = [v for v in votes if v.question == question and {v.left, v.right} == {a, b}]
        if not chosen:
            continue
        prefer = [sum(v.preferred == method for v in chosen) for method in (a, None, b)]
        shares = [f"{n} ({n / len(chosen):.0%})" for n in prefer]
        rows.append([question, a, b, len(chosen), *shares, _share(chosen, a)])
    header = ["question", "A", "B", "votes", "prefer A", "no difference", "prefer B", "share of A"]
    return _table(header, rows)


def _method_table(votes: Sequence[Vote], questions: Sequence[str], methods: Sequence[str]) -> str:
    rows = []
    for question, method in itertools.product(questions, methods):
        chosen = [v for v in votes if v.question == question and method in (v.left, v.right)]
        if chosen:
            rows.append([question, method, len(chosen), _share(chosen, method)])
    return _table(["question", "method", "votes", "share against all others"], rows)


def _voter_table(votes: Sequence[Vote]) -> str:
    by_voter: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_voter[vote.voter].append(vote)
    rows = [_habits(voter, given) for voter, given in sorted(by_voter.items())]
    if len(rows) > 1:
        rows.append(_habits("all", votes))
    header = ["voter", "votes", "same answer to repeats", "left of decided", "median seconds"]
    return _table(header, rows)


def _habits(name: str, votes: Sequence[Vote]) -> list[object]:
    """A row about how somebody voted: consistency, side and time."""
    before = {(vote.voter, vote.key): vote for vote in votes}
    repeats = [
        (before[vote.voter, vote.repeats], vote)
        for vote in votes
        if vote.repeats is not None and (vote.voter, vote.repeats) in before
    ]
    same = sum(old.preferred == new.preferred for old, new in repeats)
    decided = [vote for vote in votes if vote.choice != "none"]
    left = sum(vote.choice == "left" for vote in decided)
    seconds = f"{statistics.median(vote.seconds for vote in votes):.1f}"
    return [
        name,
        len(votes),
        _part(same, len(repeats)),
        _part(left, len(decided)),
        seconds,
    ]


def _part(count: int, of: int) -> str:
    if not of:
        return "-"
    low, high = wilson(count, of)
    return f"{count} of {of}, {count / of:.2f} [{low:.2f}, {high:.2f}]"


def _share(votes: Sequence[Vote], method: str) -> str:
    mean, low, high = share_interval(
        [vote.voter for vote in votes],
        [vote.picture for vote in votes],
        [vote.share(method) for vote in votes],
    )
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """A cell of one line, for names may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split()).replace(
        "|", r"\|"
    )
