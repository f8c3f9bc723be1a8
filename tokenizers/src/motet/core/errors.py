"""What goes wrong through no fault of the code; in a file of its own, so that the command starts without libraries."""


class UserError(Exception):
    """The user's input or configuration is wrong. One line: what is wrong, where, what to do. The command exits with 2."""
