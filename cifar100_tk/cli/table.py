"""Tables on the console: rows as aligned columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), gap: int = 2, indent: int = 0) -> str:
    """Return rows as columns, `gap` spaces apart: those in `left` left-aligned, the others right-aligned.

    >>> print(aligned([("run", "top-1"), ("a", "8.15 %")]))
    run   top-1
    a    8.15 %
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        " " * indent
        + (" " * gap)
        .join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in rows
    )
