"""Fill holes in pictures from what surrounds them, without a model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .alpha import extend_colors
from .resize import pad_symmetric

BLOCK, MARGIN = 32, 16  # pixels of a block, and around it, where patches are looked for
PATCH = 7  # pixels of a patch's side
GUESSED = 0.3  # weight of pixels of a hole when patches are compared; of others 1
BEST = 12  # patches whose middles are averaged
CLOSE = 0.02  # rms difference by which a patch may be worse than the best and still count
ROUNDS = 2  # of looking for patches; the second compares with what the first found
# The Laplacian of the Laplacian: what bends a thin plate.
STENCIL = ((0, 0, 1, 0, 0), (0, 2, -8, 2, 0), (1, -8, 20, -8, 1), (0, 2, -8, 2, 0), (0, 0, 1, 0, 0))

Change = Callable[[Tensor, Tensor], Tensor]  # of windows of pictures (N, C, h, w) and of their holes (1, 1, h, w)


def fill(image: Tensor, hole: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
    """Fill the holes of a picture ``(1, 3, H, W)`` in [0, 1], where ``hole`` ``(1, 1, H, W)`` is True.

    First by ``bend``; then each pixel becomes the mean of those, in known patches nearby, whose surroundings look most
    like its own. ``check`` may raise to stop.

    Source: Efros and Leung, "Texture synthesis by non-parametric sampling" (ICCV 1999), with a mean instead of a draw;
    Wexler et al., "Space-time completion of video" (2007), for rounds that compare with what is filled in already.
    """
    filled = bend(image, hole, check).clamp(0, 1)
    for _ in range(ROUNDS):
        filled = _blockwise(_from_patches, filled, hole, check)
    return filled


def bend(image: Tensor, hole: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
    """Bend a thin plate, which what surrounds them holds, across the holes of pictures ``(N, 3, H, W)`` in [0, 1].

    The sum of squared Laplacians is least: brightness and slopes go on, and may leave [0, 1].
    """
    return _blockwise(_bent, extend_colors(image, (~hole).to(image)), hole, check)


def wider(hole: Tensor, width: int) -> Tensor:
    """Find the places of holes ``(B, 1, H, W)`` that hold a square of more pixels a side than an even ``width``."""
    square = hole.float()
    for sign in (-1, 1):  # what is left of the holes when so much is taken off, and that put on again
        for kernel in ((width + 1, 1), (1, width + 1)):
            square = sign * F.max_pool2d(sign * square, kernel, 1, [side // 2 for side in kernel])
    return square > 0


def _blockwise(change: Change, images: Tensor, hole: Tensor, check: Callable[[], None]) -> Tensor:
    """Change the holes of pictures, block by block, each seen with its surroundings: the work follows the holes."""
    height, width = hole.shape[-2:]
    border = (MARGIN, MARGIN + -width % BLOCK, MARGIN, MARGIN + -height % BLOCK)
    padded, holes = pad_symmetric(images, border), pad_symmetric(hole, border)
    result = images.clone()
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            block = (..., slice(top, top + BLOCK), slice(left, left + BLOCK))
            if bool(hole[block].any()):
                check()
                window = (..., slice(top, top + BLOCK + 2 * MARGIN), slice(left, left + BLOCK + 2 * MARGIN))
                changed = change(padded[window], holes[window])[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
                rows, columns = result[block].shape[-2:]
                result[block] = torch.where(hole[block], changed[..., :rows, :columns], result[block])
    return result


def _bent(images: Tensor, hole: Tensor) -> Tensor:
    inside = torch.zeros_like(hole)
    inside[..., 2:-2, 2:-2] = hole[..., 2:-2, 2:-2]  # the window's edge holds the plate
    places = inside[0, 0].nonzero()  # (M, 2)
    stencil = torch.tensor(STENCIL, dtype=torch.float64)
    apart = places[:, None] - places  # (M, M, 2)
    near = apart.abs().amax(-1) <= 2
    row, column = (apart.clamp(-2, 2) + 2).unbind(-1)
    held = F.conv2d((images * ~inside).double().flatten(0, 1)[:, None], stencil[None, None], padding=2)[:, 0]
    bent = torch.cholesky_solve(
        -held[:, places[:, 0], places[:, 1]].T, torch.linalg.cholesky(torch.where(near, stencil[row, column], 0))
    )
    result = images.clone().flatten(0, 1)
    result[:, places[:, 0], places[:, 1]] = bent.T.to(images)
    return result.view_as(images)


def _from_patches(image: Tensor, hole: Tensor) -> Tensor:
    """Replace each pixel of the holes by a mean over known patches; all stay where there are hardly any."""
    reach = PATCH // 2
    known = (~hole).to(image)
    complete = -F.max_pool2d(-known, PATCH, 1)  # the middles of patches without a hole, the window's edge cut off
    targets = hole.clone()
    targets[..., :reach, :] = targets[..., -reach:, :] = targets[..., :reach] = targets[..., -reach:] = False
    targets = targets[..., reach:-reach, reach:-reach].flatten().nonzero()[:, 0]
    sources = complete.flatten().nonzero()[:, 0]
    if len(sources) < BEST:
        return image
    patches = F.unfold(image, PATCH)[0]  # (C * PATCH^2, (h - 6) (w - 6))
    weights = GUESSED + (1 - GUESSED) * F.unfold(known, PATCH)[0][:, targets].T.repeat(1, image.shape[1])
    candidates, asked = patches[:, sources], patches[:, targets].T
    difference = weights @ candidates.square() - 2 * (weights * asked) @ candidates
    difference = (difference + (weights * asked.square()).sum(1, keepdim=True)) / weights.sum(1, keepdim=True)
    nearest, which = difference.clamp_min(0).topk(BEST, dim=1, largest=False)
    share = ((nearest[:, :1] - nearest) / (CLOSE**2 + nearest[:, :1] / 2)).softmax(1)  # (targets, BEST)
    result = image.clone()
    inner = result[0, :, reach:-reach, reach:-reach].flatten(1)  # a copy
    inner[:, targets] = (inner[:, sources[which]] * share).sum(-1)
    result[0, :, reach:-reach, reach:-reach] = inner.view_as(result[0, :, reach:-reach, reach:-reach])
    return result
