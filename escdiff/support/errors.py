"""The one error a user is meant to read."""


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one sentence: what was given, what was expected, what to do. The doors (`escdiff.cli`,
    `data_prep`, `escdiff.evaluation`) print it without a traceback and exit with status 2.
    """


class TooLarge(UserError):
    """A file has more bytes or pixels than are read."""


def reason_of(error: BaseException, longest: int = 300) -> str:
    """What another library's error says, on one line, for a sentence of ours; its kind where it says nothing."""
    text = " ".join(str(error).split())
    return (text if len(text) <= longest else f"{text[: longest - 4]} ...") or type(error).__name__
