"""BlazeFace, full range: a published network that finds faces, and where their eyes are, in a square of 192 pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQUARE = 192  # pixels: side of the square that it reads
GRID = 48  # anchors on each side
POINTS = 6  # right eye (on the left in the picture), left eye, nose, mouth, right and left ear
STEM = 32
# Blocks of each grid, as (hidden, output) channels; the first of every grid but the finest halves the sides.
GRIDS = (
    ((8, 32), (8, 32)),  # 96 x 96
    ((12, 48), (12, 48), (16, 64)),
    ((24, 96), (32, 128), (32, 128)),
    ((36, 144), (48, 192), (64, 256)),
    ((96, 384), (96, 384), (96, 384), (96, 384)),  # 6 x 6
)
JOINTS = ((96, 2), (64, 2), (48, 1))  # channels and blocks on the way up to 48 x 48


class BlazeFace(nn.Module):
    """A residual network of depthwise convolutions on five grids, joined again on three of them.

    Source: Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs" (2019), section 3, in
    the full-range variant of MediaPipe, ``face_detection_full_range.tflite``.
    """

    def __init__(self) -> None:
        """Build the network; ``load_state_dict`` fills in its weights."""
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2)
        channels, self.grids = STEM, nn.ModuleList()
        for finer, widths in enumerate(GRIDS):
            blocks = nn.Sequential()
            for number, (hidden, out) in enumerate(widths):
                blocks.append(Block(channels, hidden, out, halve=finer > 0 and number == 0))
                channels = out
            self.grids.append(blocks)
        self.joints = nn.ModuleList()
        for (out, blocks), widths in zip(JOINTS, GRIDS[-2:0:-1], strict=True):
            self.joints.append(Joint(channels, widths[-1][1], out, blocks))
            channels = out
        self.score = nn.Conv2d(channels, 1, 1)
        self.box = nn.Conv2d(channels, 4 + 2 * POINTS, 1)

    def forward(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Look for a face at every anchor of the grid, in squares ``(B, 3, 192, 192)`` in [0, 1].

        Returns logits ``(B, 2304)`` of a face, row by row, and numbers ``(B, 2304, 16)`` in pixels: x and y of its
        center, width, height, and x and y of the six points. All but the sides are relative to the anchor.
        """
        x = F.relu(self.stem(_same(2 * squares - 1)))
        features: list[Tensor] = []
        for blocks in self.grids:
            features.append(x := blocks(x))
        for joint, finer in zip(self.joints, features[-2:0:-1], strict=True):
            x = joint(x, finer)
        return self.score(x).flatten(1), self.box(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Two depthwise convolutions with a narrow waist between them, and a skip past both, into the first channels."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.halve = halve
        self.filter = nn.Conv2d(inputs, inputs, 3, 1 + halve, 0 if halve else 1, groups=inputs)
        self.squeeze = nn.Conv2d(inputs, hidden, 1)
        self.filter_hidden = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.expand = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        filtered = self.filter(_same(x) if self.halve else x)
        residual = self.expand(self.filter_hidden(F.relu_(self.squeeze(filtered))))
        skip = F.max_pool2d(x, 2) if self.halve else x
        residual[:, : skip.shape[1]] += skip
        return F.relu_(residual)


class Joint(nn.Module):
    """Adds the features of a coarse grid to those of the next finer one."""

    def __init__(self, coarse: int, fine: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(coarse, outputs, 1), nn.Conv2d(fine, outputs, 1)
        self.blocks = nn.Sequential(*(Block(outputs, outputs // 2, outputs) for _ in range(blocks)))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        enlarged = F.interpolate(F.relu(self.coarse(coarse)), scale_factor=2.0, mode="bilinear")
        return self.blocks(F.relu(self.fine(fine)) + enlarged)


def anchors() -> Tensor:
    """Return the anchors as x, y ``(2304, 2)``, in pixels of the square."""
    steps = (torch.arange(GRID) + 0.5) * (SQUARE / GRID)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)


def _same(x: Tensor) -> Tensor:
    """Pad even sides as TensorFlow does for a stride of 2: one row and column, after them."""
    return F.pad(x, (0, 1, 0, 1))
