"""Who is who: heads of a picture and the adapters of people, one adapter for one head at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PFStorerError

FITS, NOBODY, NOT_SURE, CHOSEN = "fits", "nobody", "not sure", "chosen"
NOBODY_WORD = "nobody"  # what a choice calls the base
LIMIT = 1.0  # nats by which a match must be ahead of every other
_IMPOSSIBLE = -1e6


@dataclass(frozen=True)
class Match:
    """Whose head one is.

    Args:
        adapter: index of the adapter that restores it; None leaves it to the base.
        reason: FITS, NOBODY (no adapter fits), NOT_SURE or CHOSEN (by the user).
        evidence: (A,) log-likelihood ratios of each adapter's person against somebody else, nats;
            NaN where nothing was measured.
        lead: nats by which the best assignment with this match is ahead of the best one without.
    """

    adapter: int | None
    reason: str
    evidence: Tensor
    lead: float = math.nan


def match(
    evidence: Tensor, choices: dict[int, int | None] | None = None, limit: float = LIMIT
) -> list[Match]:
    """Returns whose each head is.

    Args:
        evidence: (F, A) see `assign`.
        choices: by index of a head the adapter that the user says, see `parse_choices`; the other
            heads are given what is left.
        limit: see `assign`.
    """
    heads, adapters = evidence.shape
    chosen = choices or {}
    free_heads = [k for k in range(heads) if k not in chosen]
    free_adapters = [k for k in range(adapters) if k not in chosen.values()]
    left = evidence[free_heads][:, free_adapters]  # (f, a)
    found = {}
    for head, (adapter, lead) in zip(free_heads, _assigned(left), strict=True):
        given = None if adapter is None else free_adapters[adapter]
        reason = NOBODY if given is None else FITS
        if given is not None and lead < limit:
            given, reason = None, NOT_SURE
        found[head] = Match(given, reason, evidence[head], lead)
    for head, adapter in chosen.items():
        found[head] = Match(adapter, CHOSEN, evidence[head])
    return [found[head] for head in range(heads)]


def assign(evidence: Tensor, limit: float = LIMIT) -> list[int | None]:
    """Returns the adapter of each head, None for none.

    The assignment as a whole has the most evidence, one adapter to one head at most; a head without
    an adapter adds none. A head whose adapter is not ahead by the limit is left to nobody.

    Args:
        evidence: (F, A) log-likelihood ratios "this adapter's person" against "somebody else", in
            nats; NaN where nothing is known, which counts as impossible.
        limit: nats by which the best assignment with a match must be ahead of the best without.
    """
    return [found.adapter for found in match(evidence, limit=limit)]


def _assigned(evidence: Tensor) -> list[tuple[int | None, float]]:
    """Returns the adapter of each head (F, A) in the best assignment, and how far it is ahead."""
    gains = torch.nan_to_num(evidence.double(), nan=_IMPOSSIBLE, neginf=_IMPOSSIBLE)
    best, total = _best(gains)
    found = []
    for head, adapter in enumerate(best):
        without = gains.clone()
        if adapter is None:
            # the head must have an adapter: by how much is that worse?
            others = without[head] + 2 * abs(_IMPOSSIBLE)
            without[head] = others
            _, other = _best(without)
            other -= 2 * abs(_IMPOSSIBLE)
        else:
            without[head, adapter] = _IMPOSSIBLE
            _, other = _best(without)
        found.append((adapter, total - other))
    return found


def _best(gains: Tensor) -> tuple[list[int | None], float]:
    """Returns the assignment (F, A) of the highest sum, heads without an adapter adding 0."""
    from scipy.optimize import linear_sum_assignment

    heads, adapters = gains.shape
    if not heads or not adapters:
        return [None] * heads, 0.0
    padded = torch.cat([gains, gains.new_zeros(heads, heads)], 1).numpy()  # (F, A + F)
    rows, columns = linear_sum_assignment(padded, maximize=True)
    found = [int(column) if column < adapters else None for column in columns]
    return found, float(padded[rows, columns].sum())


def split_choices(text: str) -> list[str]:
    """Returns the choices that a user wrote, each such as "2=Anna"."""
    parts = (part.strip() for part in text.replace(";", ",").replace("\n", ",").split(","))
    return [part for part in parts if part]


def no_such_head(choice: str, heads: int) -> PFStorerError:
    """Returns the error of a choice that names a head beyond those that were found."""
    number = choice.partition("=")[0].strip()
    return PFStorerError(
        f"The choice '{choice}' names head {number}, but {heads} were found; take a number that "
        "the picture of the heads shows."
    )


def parse_choices(
    text: str, names: Sequence[str], heads: int, first: int = 1
) -> dict[int, int | None]:
    """Reads who is who as a user writes it, such as "2=Anna, 3=nobody".

    Args:
        text: heads by their numbers, each with a name or "nobody"; empty for no choice.
        names: of the adapters.
        heads: how many there are.
        first: number of the first of them.

    Returns:
        By index of the head, from 0, the index of the adapter; None for nobody.

    Raises:
        PFStorerError: what cannot be read, a head or name that is not there, a name that several
            adapters have, or a head or an adapter that is chosen twice.
    """
    found: dict[int, int | None] = {}
    for part in split_choices(text):
        number, equals, name = (x.strip() for x in part.partition("="))
        if not equals or not number.isdecimal() or not name:
            raise PFStorerError(
                f"The choice '{part}' cannot be read; write the number of a head, '=' and "
                f"a name or '{NOBODY_WORD}', such as '2=Anna, 3={NOBODY_WORD}'."
            )
        head = int(number) - first
        if not 0 <= head < heads:
            raise no_such_head(part, heads)
        if head in found:
            raise PFStorerError(f"Head {number} is chosen twice; leave one of the choices out.")
        adapter = _adapter_called(name, names)
        if adapter is not None and adapter in found.values():
            raise PFStorerError(
                f"'{names[adapter]}' is chosen for two heads; one adapter restores one head, so "
                "leave one of the choices out."
            )
        found[head] = adapter
    return found


def _adapter_called(name: str, names: Sequence[str]) -> int | None:
    called = [k for k, known in enumerate(names) if known.casefold() == name.casefold()]
    if not called and name.casefold() == NOBODY_WORD:
        return None
    if not called:
        raise PFStorerError(
            f"No adapter is called '{name}'; choose of {', '.join(names) or 'none'}, or "
            f"'{NOBODY_WORD}'."
        )
    if len(called) > 1:
        raise PFStorerError(
            f"{len(called)} adapters are called '{name}'; train or save them under different names."
        )
    return called[0]


def match_table(matches: Sequence[Match], names: Sequence[str], first: int = 1) -> list[str]:
    """Returns lines for a report: heads x adapters with the evidence and the choice, and doubts.

    Args:
        matches: one for each head.
        names: of the adapters.
        first: number of the first head.
    """
    lines = []
    for number, found in enumerate(matches, first):
        scores = [f"{n} {_signed(e)}" for n, e in zip(names, found.evidence.tolist(), strict=True)]
        who = NOBODY_WORD if found.adapter is None else names[found.adapter]
        if found.reason in (NOT_SURE, CHOSEN):
            who += f" ({found.reason})"
        lines.append(" | ".join([f"Head {number}", *scores, f"-> {who}"]))
    return [*lines, *_doubts(matches, names, first)]


def _doubts(matches: Sequence[Match], names: Sequence[str], first: int) -> list[str]:
    lines = []
    for number, found in enumerate(matches, first):
        if found.reason != NOT_SURE:
            continue
        fit = [n for n, e in zip(names, found.evidence.tolist(), strict=True) if e > 0]
        if len(fit) > 1:
            lines.append(
                f"Head {number} fits {' and '.join(fit)}: if they are adapters of one person, "
                "connect only one of them; else choose yourself."
            )
    idle = [n for k, n in enumerate(names) if k not in {found.adapter for found in matches}]
    if len(names) > len(matches):
        lines.append(
            f"There are {len(names)} adapters for {len(matches)} head(s); {', '.join(idle)} "
            "restore(s) nobody."
        )
    return lines


def _signed(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:+.1f}"
