"""Every error that a user can act on, and how text from elsewhere is printed."""

_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


def printable(text: str) -> str:
    """Text without control characters, which a terminal may obey; tabs and ends of lines stay."""
    return text.translate(_CONTROLS)


class ArchimedesError(Exception):
    """A problem of the user's input or surroundings, in one sentence: what, where, what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """


class TraceError(ArchimedesError):
    """A trace that cannot be read: names the file, and column and row where there is one."""


class SourceError(ArchimedesError):
    """A server that data is to be taken from and that refuses, or has none."""


class ArtifactError(ArchimedesError):
    """A model folder that is missing parts, was changed, or would serve nonsense."""


class RegistryError(ArchimedesError):
    """The registry cannot be reached, or has no such model, version or alias."""


class UnknownVersionError(RegistryError):
    """The registry was reached and has no version of that number: it was deleted, or never was."""


class SettingsError(ArchimedesError):
    """A setting that is unknown, of the wrong type, or out of range."""
