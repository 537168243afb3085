"""LightGBM without pandas, scikit-learn and pyarrow, which it takes along where they are installed.

It needs them for estimators and tables, which nothing that serves hands it. They would take 130 MB
of each serving process, and a second of its start.
"""

from __future__ import annotations

import sys

_TAKEN_ALONG = ("dask", "pandas", "pyarrow", "sklearn")


def import_lightgbm_alone() -> None:
    """Import LightGBM as if these were not installed; whoever imports them later still can.

    To be called before anything imports LightGBM.
    """
    hidden = [name for name in _TAKEN_ALONG if name not in sys.modules]
    # Of what is None there, an import says that there is no such module.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import lightgbm  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
