"""The one error class whose text is meant for users."""


class PFStorerError(ValueError):
    """Bad input or a state the user can mend.

    The message is one sentence that says what was found, what was expected and what to do.
    """
