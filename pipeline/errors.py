"""Errors that a user can mend; the command line prints their message alone, without a traceback."""


class UserError(ValueError):
    """A mistake in the input, the settings or the files.

    The message names what is wrong, where, what was expected and found, and the remedy.
    """

    def __str__(self) -> str:
        # A loader process hands on an error as its traceback, which ends with the message.
        return super().__str__().rpartition(f"{__name__}.UserError: ")[2].rstrip()
