"""How many bytes a task works with: what nodes ask the host for, and by what the side of tiles is chosen."""

from ..flows.model import FlowModel
from .options import HALO
from .runner import batch_size

STRIPS = 2**26  # bytes of the strips of an enlargement, whatever the picture
LARGE = 2**28  # bytes of weights whose copy counts
MERGED = 24  # numbers per pixel of a photograph, of whatever size, to which colors are added


def memory_required(flow: FlowModel, count: int, height: int, width: int, *, working_size: int | None = None) -> int:
    """Estimate the bytes of making so many pictures of a size in float32, beyond the weights and the results.

    A batch between and within layers, and a copy of large weights. See docs/decisions/0004 for what was measured.
    """
    merged = 0
    if flow.capabilities.source == "luma":
        merged = MERGED * height * width
        height, width = flow.config.working_sides(max(1, height), max(1, width), working_size)
    at_once = min(count, batch_size(height, width))
    numbers = at_once * height * width * (8 * flow.channels + flow.capabilities.floats_per_pixel) + merged
    weights = sum(t.nbytes for t in flow.parameters())
    return round(4 * numbers) + (weights if weights > LARGE else 0)


def memory_in_tiles(
    flow: FlowModel, height: int, width: int, tile: int, halo: int = HALO, *, guided: bool = False
) -> int:
    """Estimate the same for a source of a size that is processed in tiles, perhaps with a guide."""
    rows, columns = (flow.condition_scale * min(side, tile + 2 * halo) for side in (height, width))
    return memory_required(flow, 1, rows, columns) + (guide_bytes(flow, height, width) if guided else STRIPS)


def guide_bytes(flow: FlowModel, height: int, width: int) -> int:
    """Estimate the bytes of the guide of a source, and of what is made of it."""
    return 4 * 2 * 3 * flow.condition_scale**2 * height * width + STRIPS
