"""The errors that users read."""

import pickle

import pytest

from pfstorer_core.errors import PFStorerError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("right\u202eleft", r"right\u202eleft"),
        ("half\ud800", r"half\ud800"),
        ("nul\0", r"nul\x00"),
        ("Zoë 张伟 😀", "Zoë 张伟 😀"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_a_foreign_name_keeps_a_sentence_in_one_line(name: str, shown: str) -> None:
    assert str(PFStorerError(f"'{name}' is no name.")) == f"'{shown}' is no name."


def test_a_long_name_is_shortened_and_the_advice_stays() -> None:
    sentence = str(PFStorerError(f"'{'x' * 10_000}' is too long; give a shorter one."))
    assert len(sentence) < 1100 and sentence.endswith("is too long; give a shorter one.")


def test_an_error_can_be_sent_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(PFStorerError("It is so.")))) == "It is so."
