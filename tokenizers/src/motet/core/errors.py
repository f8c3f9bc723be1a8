"""What goes wrong through no fault of the code; in a file of its own, so that the command starts without libraries."""

from motet.core.urls import censored


class UserError(Exception):
    """The user's input or configuration is wrong. One line: what is wrong, where, what to do. The command exits with 2.

    URLs in the message lose their passwords and signatures.
    """

    def __init__(self, message: str):
        super().__init__(censored(message))


def one_line(error: BaseException) -> str:
    """Kind and words of another library's exception, for a message: one line of at most 200 characters."""
    return censored(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))[:200]
