"""Morton order: neighbours in space become neighbours in memory, with torch alone."""

from __future__ import annotations

import sys
from typing import Any

# More dimensions would leave too few bits for each: those of largest spread are used.
_MOST_DIMS = 15
_BITS = 60
_MOST_BITS_PER_DIM = 16


def morton_order(rows: Any) -> Any:
    """(n,) order of the rows (n, d) of a tensor along a Z-shaped curve through space.

    The bits of the coordinates interleave to one number per row, by which the rows are
    sorted. Cells are cubes, so the coordinate of largest extent sets the scale.
    """
    torch = sys.modules["torch"]
    (low, high) = (rows.amin(dim=0), rows.amax(dim=0))
    extent = high - low
    if rows.shape[1] > _MOST_DIMS:
        chosen = extent.topk(_MOST_DIMS).indices
        (rows, low, extent) = (rows[:, chosen], low[chosen], extent[chosen])
    bits = min(_BITS // rows.shape[1], _MOST_BITS_PER_DIM)
    scale = (2**bits - 1) / extent.amax().clamp(min=torch.finfo(rows.dtype).tiny)
    cells = ((rows - low) * scale).long().clamp(0, 2**bits - 1)
    code = torch.zeros_like(cells[:, 0])
    for bit in range(bits - 1, -1, -1):
        for column in cells.unbind(dim=1):
            code = (code << 1) | ((column >> bit) & 1)
    return code.argsort()
