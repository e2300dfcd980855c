"""What can go wrong with a stack of processes."""

from __future__ import annotations


class StackError(Exception):
    """Says what failed and what to do; nothing of the stack is left running because of it."""
