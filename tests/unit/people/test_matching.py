"""Who is who: the assignment, what the user says instead, and what is told about it."""

import itertools
import math

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.people.matching import (
    CHOSEN,
    FITS,
    LIMIT,
    NOBODY,
    NOT_SURE,
    assign,
    match,
    match_table,
    parse_choices,
)

NAMES = ("Anna", "Ben", "Zoë")


def test_it_is_the_best_of_all_assignments() -> None:
    torch.manual_seed(0)
    for heads, adapters in itertools.product(range(1, 4), range(1, 5)):
        evidence = 3 * torch.randn(heads, adapters)
        options = [*range(adapters), None]
        possible = {
            found: sum(float(evidence[k, a]) for k, a in enumerate(found) if a is not None)
            for found in itertools.product(options, repeat=heads)
            if len({a for a in found if a is not None}) == sum(a is not None for a in found)
        }
        best = max(possible, key=possible.__getitem__)
        assert assign(evidence, -math.inf) == list(best)
        for head, found in enumerate(match(evidence)):
            other = max(total for way, total in possible.items() if way[head] != best[head])
            assert found.lead == pytest.approx(possible[best] - other, abs=1e-4)
            sure = best[head] is not None and found.lead >= LIMIT
            assert found.adapter == (best[head] if sure else None)


def test_one_adapter_goes_to_one_head() -> None:
    evidence = torch.tensor([[5.0, -9.0], [8.0, -9.0]])
    assert assign(evidence) == [None, 0]
    # the second head's next best is better than nothing, so that both have somebody
    assert assign(torch.tensor([[5.0, -9.0], [8.0, 6.0]])) == [0, 1]


def test_what_is_not_sure_is_left_to_nobody() -> None:
    found = match(torch.tensor([[4.0, 3.9], [-0.5, -3.0], [-2.0, -1.0]]))
    assert [m.adapter for m in found] == [None, None, None]
    assert [m.reason for m in found] == [NOT_SURE, NOBODY, NOBODY]
    found = match(torch.tensor([[4.0, 3.9], [-0.5, -3.0]]), limit=0.05)
    assert [m.reason for m in found] == [FITS, NOBODY] and found[0].adapter == 0


def test_nothing_known_is_nobody() -> None:
    found = match(torch.full((2, 3), torch.nan))
    assert [(m.adapter, m.reason) for m in found] == [(None, NOBODY)] * 2
    assert assign(torch.zeros(0, 3)) == [] and assign(torch.zeros(2, 0)) == [None, None]


def test_the_user_has_the_last_word() -> None:
    evidence = torch.tensor([[9.0, -5.0, 1.5], [8.0, -5.0, -5.0], [-5.0, 9.0, -5.0]])
    found = match(evidence, {1: 0, 2: None})
    assert [m.adapter for m in found] == [2, 0, None]
    assert [m.reason for m in found] == [FITS, CHOSEN, CHOSEN]


def test_choices_are_read() -> None:
    assert parse_choices("", NAMES, 3) == {}
    assert parse_choices(" 2=anna, 3 = Nobody,", NAMES, 3) == {1: 0, 2: None}
    assert parse_choices("1=ZOË; 2=nobody\n3=nobody", NAMES, 3) == {0: 2, 1: None, 2: None}
    assert parse_choices("1=nobody", ("Nobody",), 1) == {0: 0}, "a person may be called so"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Anna", "'Anna' cannot be read; write the number of a head"),
        ("x=Anna", "'x=Anna' cannot be read"),
        ("2=", "'2=' cannot be read"),
        ("4=Anna", "names head 4, but 3 were found"),
        ("0=Anna", "names head 0, but 3 were found"),
        ("1=Carl", "No adapter is called 'Carl'; choose of Anna, Ben, Zoë, or 'nobody'"),
        ("1=Anna, 1=Ben", "Head 1 is chosen twice"),
        ("1=Anna, 2=ANNA", "'Anna' is chosen for two heads"),
    ],
)
def test_what_is_wrong_with_a_choice(text: str, said: str) -> None:
    with pytest.raises(PFStorerError, match=said):
        parse_choices(text, NAMES, 3)


def test_a_name_of_two_adapters_is_no_choice() -> None:
    with pytest.raises(PFStorerError, match="2 adapters are called 'anna'"):
        parse_choices("1=anna", ("Anna", "anna"), 1)


def test_the_table_tells_all() -> None:
    evidence = torch.tensor([[4.0, 3.5, -2.0], [-3.0, torch.nan, 5.25]])
    assert match_table(match(evidence, {1: 2}), NAMES) == [
        "Head 1 | Anna +4.0 | Ben +3.5 | Zoë -2.0 | -> nobody (not sure)",
        "Head 2 | Anna -3.0 | Ben ? | Zoë +5.2 | -> Zoë (chosen)",
        "Head 1 fits Anna and Ben: if they are adapters of one person, connect only one of them; "
        "else choose yourself.",
        "There are 3 adapters for 2 head(s); Anna, Ben restore(s) nobody.",
    ]
    plain = match_table(match(torch.tensor([[9.0, -9.0], [-9.0, -9.0]])), NAMES[:2])
    assert plain == [
        "Head 1 | Anna +9.0 | Ben -9.0 | -> Anna",
        "Head 2 | Anna -9.0 | Ben -9.0 | -> nobody",
    ]
