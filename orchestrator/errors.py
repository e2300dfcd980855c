"""Errors by who is at fault. Each text says what failed, the numbers, and what to do."""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of everything the orchestrator raises on purpose; a command line shows its text and no traceback."""

    exit_code = 1


class UsageError(OrchestratorError):
    """The user's input is wrong; the text names the file, the line or field, what was found and what is allowed."""

    exit_code = 2


class StudyError(OrchestratorError):
    """A study on disk cannot be used (corrupt, missing, written by another version)."""


class UnusableInput(StudyError):
    """What the user gave cannot be used as it is: an archive, a folder, the address or password of a database."""

    exit_code = 2


class EvaluationDefect(OrchestratorError):
    """A defect of the tool itself showed up in an evaluation; the study stops rather than learn from it."""


class ShapeError(ValueError):
    """An array does not have the documented shape."""
