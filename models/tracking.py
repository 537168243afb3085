"""MLflow's address: which kinds there are. Nothing here imports MLflow."""

from __future__ import annotations

import re
from pathlib import Path

from models.usage_source import is_address

_SQLITE = "sqlite:///"


def tracking_problem(uri: str) -> str:
    """Why a tracking URI names no registry; empty where it does."""
    database = database_file(uri)
    if is_address(uri) or (database is not None and database.name not in ("", ":memory:")):
        return ""
    shown = without_password(uri)
    return f"{shown!r} is neither http(s)://HOST:PORT of an MLflow server nor sqlite:///FILE"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None for every other URI."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


def without_password(text: str) -> str:
    """Cut user and password out of the addresses in a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)
