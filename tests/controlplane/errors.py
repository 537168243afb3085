"""The two errors of this package that callers tell apart."""


class NotInstalledError(Exception):
    """Something that must be installed or built first is missing; the text says how to get it."""


class ProcessError(Exception):
    """A program ended, or did not get ready in time; the text has the last lines of its log."""
