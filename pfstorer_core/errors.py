"""The one error class whose text is meant for users, and what other errors say."""

_LONGEST = 1000  # characters; what a damaged file brings along could be of any length


class PFStorerError(ValueError):
    """Bad input or a state the user can mend.

    The message is one sentence in one line that says what was found, what was expected and what to
    do. Characters of foreign names that break or turn a line are shown as escapes.

    Args:
        message: the sentence.
    """

    def __init__(self, message: str) -> None:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        if len(shown) > _LONGEST:
            half = _LONGEST // 2
            shown = f"{shown[:half]} ... {shown[-half:]}"
        super().__init__(shown)


def first_line(error: BaseException) -> str:
    """Returns what an error says in its first line, for use within a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
