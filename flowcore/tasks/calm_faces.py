"""Calm faces: a lower temperature and less of the guide within the faces of a photograph that is enlarged.

Lips, lashes and glasses of small faces are a few pixels, which samples at the temperature of texture garble, and which
a restorer draws as dark slits.
"""

import torch
from torch import Tensor

from ..engine.options import Strength
from ..engine.runner import Runner
from ..errors import say
from ..flows.prior import Temperature, resize_temperature_map
from .finders.faces import faces_of

LEAST, MOST = 24, 120  # pixels: sides of the faces, with their hair, that are kept calm
FACE_SIDE = 1.65  # side of such a face, in widths of the box from eyebrows to chin
WIDE, HIGH, RISE = 0.72, 0.88, 0.1  # radii of the oval, in widths of that box; and how far it rises
SOFT = 0.3  # share of the radii over which the temperature rises to that around the face
# The templates of the notes on one face, and on several. Nodes show them as facts, not as warnings.
KEPT_CALM = (
    say("1 face is kept calm: less is invented there."),
    say("{count} faces are kept calm: less is invented there."),
)


def face_map(run: Runner, rgb: Tensor) -> Tensor | None:
    """Map the faces of images ``(B, 3, h, w)`` in [0, 1]: 1 within, 0 around, with soft edges; say how many there are.

    ``(B, 1, h, w)``, float32 on the CPU; None if there are no faces of ``LEAST`` to ``MOST`` pixels.
    """
    height, width = rgb.shape[-2:]
    if max(height, width) < LEAST:
        return None
    faces, count = torch.zeros(len(rgb), 1, height, width), 0
    for around, picture in zip(faces, rgb.split(1), strict=True):
        found = faces_of(picture.cpu(), run, 0.7 * LEAST / FACE_SIDE, doublings=1)  # finds the smallest well
        for face in (face for face in found if LEAST <= FACE_SIDE * face.width <= MOST):
            distances = face.oval(height, width, high=HIGH, wide=WIDE, rise=RISE).distances(height, width)
            depth = ((1 - distances) / SOFT).clamp(0, 1)
            around[0] = torch.maximum(around[0], depth.square() * (3 - 2 * depth))  # smoothstep
            count += 1
    if not count:
        return None
    run.notify(KEPT_CALM[count > 1], count=count)
    return faces


def lower_within(temperature: Temperature, faces: Tensor, share: float) -> Temperature:
    """Lower temperatures of levels and places by a share within the faces of a map ``(B, 1, h, w)``."""
    if not isinstance(temperature, float | int | Tensor):
        return [_times(tau, 1 - share * faces) for tau in temperature]
    return _times(temperature, 1 - share * faces)


def limit_within(strength: Strength, faces: Tensor, most: float) -> Strength:
    """Limit the strength of a guide within the faces of a map ``(B, 1, h, w)``."""
    if isinstance(strength, Tensor):
        strength = _resized(strength, faces)
    elif strength <= most:
        return strength
    return strength - faces * (strength - torch.full_like(faces, most)).relu()


def _times(tau: float | Tensor, factors: Tensor) -> Tensor:
    """Multiply a temperature, which may be a map of another size, by factors ``(B, 1, h, w)``."""
    return (_resized(tau, factors) if isinstance(tau, Tensor) and tau.ndim == 4 else tau) * factors


def _resized(values: Tensor, like: Tensor) -> Tensor:
    return resize_temperature_map(values.detach().to("cpu", torch.float32), like.shape[-2], like.shape[-1])
