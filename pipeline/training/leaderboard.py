"""The table of the candidates that were compared, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.wording import shorten

TIMES = ("fit_seconds", "predict_seconds_per_1000")  # columns that differ from run to run
_SHOWN = 12


def format_leaderboard(candidates: Sequence[Mapping[str, Any]], width: int = 80) -> str:
    """Format the best candidates for a terminal.

    Parameters
    ----------
    candidates : sequence of mapping
        From `Choice.candidates`, the best first.
    width : int
        Columns of the terminal, at least 60.

    Returns
    -------
    str
        Lines without a newline at the end.
    """
    cells = (("accuracy", 10), ("+/-", 7), ("log loss", 10), ("fit s", 8), ("s/1000", 8))
    room = width - sum(size for _, size in cells)
    lines = ["candidate".ljust(room) + "".join(title.rjust(size) for title, size in cells)]
    for row in candidates[:_SHOWN]:
        params = ", ".join(f"{key}={value}" for key, value in row["params"].items())
        spread = "" if row["accuracy_sd"] is None else f"{row['accuracy_sd']:.3f}"
        numbers = (
            f"{row['accuracy']:.3f}",
            spread,
            f"{row['log_loss']:.3f}",
            f"{row['fit_seconds']:.2f}",
            f"{row['predict_seconds_per_1000']:.3f}",
        )
        mark = " *" if row.get("chosen") else ""
        name = shorten(f"{row['head']} {params}".strip(), room - len(mark)) + mark
        lines.append(
            name.ljust(room) + "".join(text.rjust(size) for text, (_, size) in zip(numbers, cells, strict=True))
        )
    if len(candidates) > _SHOWN:
        lines.append(f"and {len(candidates) - _SHOWN} more")
    return "\n".join(lines)
