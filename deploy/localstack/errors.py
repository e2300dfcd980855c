"""What can go wrong with a stack of processes."""

from __future__ import annotations


class StackError(Exception):
    """Says what failed and what to do; nothing of the stack is left running because of it."""

    exit_code = 1


class WrongCommand(StackError):
    """The command, a file that it names, or this machine's state does not allow it; nothing was begun."""

    exit_code = 2
