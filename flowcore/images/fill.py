"""Fill holes and transparent places of pictures from their surroundings, without a model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import pad_symmetric

RELIABLE = 1 / 8  # alpha from which on a pixel's color can be trusted: below, 8 bits leave hardly any of it
MIN_BLANK = 16  # pixels under alpha 0 that must have one color to count as blank
BLOCK, MARGIN = 32, 16  # pixels of a block, and around it, where patches are searched
PATCH = 7  # pixels of a patch's side
GUESSED = 0.3  # weight of filled-in pixels when patches are compared; that of original ones is 1
BEST = 12  # patches whose middles are averaged
CLOSE = 0.02  # rms difference by which a patch may be worse than the best and still count
ROUNDS = 2  # searches for patches; the second compares with what the first filled in
# The Laplacian of the Laplacian, which a thin plate minimizes.
STENCIL = ((0, 0, 1, 0, 0), (0, 2, -8, 2, 0), (1, -8, 20, -8, 1), (0, 2, -8, 2, 0), (0, 0, 1, 0, 0))

Change = Callable[[Tensor, Tensor], Tensor]  # takes windows of pictures (N, C, h, w) and their holes (1, 1, h, w)


def extend_colors(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Continue the visible colors of pictures ``(B, 3, H, W)`` where alpha ``(B, 1, H, W)`` is near 0.

    Pull-push: average 2x2 pixels, weighted by visibility, again and again, down to one pixel; then, from the coarsest
    means on, fill in what is not visible. Pictures that are nowhere visible stay.

    Source: Gortler et al., "The Lumigraph" (1996), section 3.4.
    """
    visible = (alpha / RELIABLE).clamp(max=1)
    if bool((visible == 1).all()):
        return rgb
    levels = [(rgb, visible)]
    while max(levels[-1][1].shape[-2:]) > 1:
        color, weight = levels[-1]
        share = F.avg_pool2d(weight, 2, ceil_mode=True)
        mean = F.avg_pool2d(color * weight, 2, ceil_mode=True) / share.clamp_min(torch.finfo(share.dtype).tiny)
        levels.append((mean, (4 * share).clamp(max=1)))
    filled = levels.pop()[0]
    for color, weight in reversed(levels):
        coarse = F.interpolate(filled, color.shape[-2:], mode="bilinear")
        filled = weight * color + (1 - weight) * coarse
    return torch.where(visible.amax((1, 2, 3), keepdim=True) > 0, filled.clamp(0, 1), rgb)


def extend_over_blank(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Continue colors as ``extend_colors`` does if all pixels under alpha 0 have one color.

    Otherwise these pixels are part of the picture: alpha may also be a mask that was painted on it.
    """
    hidden = (alpha == 0).expand_as(rgb)
    low, high = rgb.masked_fill(~hidden, 1).amin((2, 3)), rgb.masked_fill(~hidden, 0).amax((2, 3))
    blank = (low == high).all(1) & (hidden[:, 0].sum((1, 2)) >= MIN_BLANK)  # (B,)
    return torch.where(blank[:, None, None, None], extend_colors(rgb, alpha), rgb)


def fill(image: Tensor, hole: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
    """Fill the holes of a picture ``(1, 3, H, W)`` in [0, 1], where ``hole`` ``(1, 1, H, W)`` is True.

    First by ``bend``; then each pixel becomes the mean of those nearby whose surroundings look most like its own.
    ``check`` may raise to stop.

    Source: Efros and Leung, "Texture synthesis by non-parametric sampling" (ICCV 1999), with a mean instead of a draw;
    Wexler et al., "Space-time completion of video" (2007), for rounds that compare with what is filled in already.
    """
    filled = bend(image, hole, check).clamp(0, 1)
    for _ in range(ROUNDS):
        filled = _in_blocks(_from_patches, filled, hole, check)
    return filled


def bend(image: Tensor, hole: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
    """Fill the holes of pictures ``(N, 3, H, W)`` in [0, 1] by a thin plate that is clamped around them.

    This minimizes the sum of squared Laplacians: brightness and slopes continue, and may leave [0, 1].
    """
    return _in_blocks(_solve_thin_plate, extend_colors(image, (~hole).to(image)), hole, check)


def _in_blocks(change: Change, images: Tensor, hole: Tensor, check: Callable[[], None]) -> Tensor:
    """Change the holes of pictures block by block, each with its surroundings; blocks without holes are skipped."""
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


def _solve_thin_plate(images: Tensor, hole: Tensor) -> Tensor:
    inside = torch.zeros_like(hole)
    inside[..., 2:-2, 2:-2] = hole[..., 2:-2, 2:-2]  # the plate is clamped at the window's edge, too
    y, x = inside[0, 0].nonzero().unbind(1)  # (M,) each
    stencil = torch.tensor(STENCIL, dtype=torch.float64)
    down, right = y[:, None] - y, x[:, None] - x  # (M, M), M at most (BLOCK + 2 MARGIN)^2
    matrix = stencil[down.clamp(-2, 2) + 2, right.clamp(-2, 2) + 2]
    matrix = torch.where((down.abs() <= 2) & (right.abs() <= 2), matrix, 0)
    planes = (images * ~inside).double().flatten(0, 1)[:, None]
    boundary = F.conv2d(planes, stencil[None, None], padding=2)[:, 0, y, x]  # (N * 3, M), of what surrounds the hole
    result = images.clone().flatten(0, 1)
    result[:, y, x] = torch.cholesky_solve(-boundary.T, torch.linalg.cholesky(matrix)).T.to(images)
    return result.view_as(images)


def _from_patches(image: Tensor, hole: Tensor) -> Tensor:
    """Replace each pixel of the holes by a mean over patches without a hole; if there are hardly any, by itself."""
    reach = PATCH // 2
    known = (~hole).to(image)
    inner = (slice(None), slice(reach, -reach), slice(reach, -reach))  # the middles of patches
    targets = hole[0][inner].flatten().nonzero()[:, 0]
    sources = (F.max_pool2d(hole.to(image), PATCH, 1) == 0).flatten().nonzero()[:, 0]
    if len(sources) < BEST:
        return image
    patches = F.unfold(image, PATCH)[0]  # (C * PATCH^2, (h - 6) (w - 6))
    weights = GUESSED + (1 - GUESSED) * F.unfold(known, PATCH)[0][:, targets].T.repeat(1, image.shape[1])
    candidates, wanted = patches[:, sources], patches[:, targets].T
    difference = weights @ candidates.square() - 2 * (weights * wanted) @ candidates  # (targets, sources)
    difference = (difference + (weights * wanted.square()).sum(1, keepdim=True)) / weights.sum(1, keepdim=True)
    nearest, which = difference.clamp_min(0).topk(BEST, dim=1, largest=False)
    share = ((nearest[:, :1] - nearest) / (CLOSE**2 + nearest[:, :1] / 2)).softmax(1)  # (targets, BEST); softer if far
    middles = image[0][inner].flatten(1)  # a copy
    middles[:, targets] = (middles[:, sources[which]] * share).sum(-1)
    result = image.clone()
    result[0][inner] = middles.view_as(result[0][inner])
    return result
