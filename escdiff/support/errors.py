"""The one error a user is meant to read."""


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one sentence: what was given, what was expected, what to do. The doors (`escdiff.cli`,
    `data_prep`, `escdiff.evaluation`) print it without a traceback and exit with status 2.
    """


class TooLarge(UserError):
    """A file has more bytes or pixels than are read."""
