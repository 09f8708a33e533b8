"""Errors that a user can mend; the command line prints their message alone, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input, the settings or the files.

    The message names what is wrong, where, what was expected and found, and the remedy.
    """

    def __str__(self) -> str:
        # A loader process hands on an error as its traceback, which ends with the message.
        return super().__str__().rpartition(f"{__name__}.UserError: ")[2].rstrip()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like `name`, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
