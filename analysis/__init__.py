"""Result files in; correlations, thresholds, figures and the report out. Needs no training stack.

`analysis.load(path)` gives the results table of a grid directory or of anybody's CSV or Parquet file. From a table to
statements: `threshold`, `first_above`, `comparisons`, `augmented` (where an ability begins), `correlation`,
`same_loss`, `axes`, `critical_scale`, `scaling` (what performance depends on), `forecast` (what small runs foretell of
large ones). `statements` draws all of them at once; `figures/`, `interactive`, `sections`, `findings` and `report` show
them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m analysis.table` does not import its own module twice.
    if name == "load":
        from analysis.table import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
