"""Errors that a user can mend: each is one line that names the subject, the value and the remedy."""


class PipelineError(Exception):
    """A run that failed; the message is all that the user sees, the exit code is 1."""

    exit_code = 1


class UsageError(PipelineError):
    """A wrong argument, configuration or input folder, found before any work; the exit code is 2."""

    exit_code = 2
