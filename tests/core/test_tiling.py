"""Windows cover an image once, on the grid of the whole image."""

import pytest
import torch

from flowcore.errors import FlowError
from flowcore.tasks.tiles import windows


@pytest.mark.parametrize(
    ("height", "width", "tile", "halo"), [(64, 48, 16, 8), (50, 34, 20, 0), (2, 2, 32, 24), (130, 2, 32, 5)]
)
def test_tiles_cover_every_pixel_once_and_stay_on_the_grid(height: int, width: int, tile: int, halo: int) -> None:
    count = torch.zeros(height, width)
    for w in windows(height, width, tile=tile, halo=halo, multiple=2):
        count[w.top : w.bottom, w.left : w.right] += 1
        assert 0 < w.bottom - w.top <= tile
        assert 0 < w.right - w.left <= tile
        for edge in (w.top, w.bottom, w.left, w.right, w.halo_top, w.halo_bottom, w.halo_left, w.halo_right):
            assert edge % 2 == 0
        assert w.halo_top == max(0, w.top - halo - halo % 2)
        assert w.halo_right == min(width, w.right + halo + halo % 2)
    assert torch.equal(count, torch.ones(height, width))


def test_a_tile_smaller_than_the_grid_is_refused() -> None:
    with pytest.raises(FlowError, match="at least 2"):
        windows(8, 8, tile=1, halo=0, multiple=2)
