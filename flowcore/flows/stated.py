"""What a model's configuration states beyond its own network, typed: fields that several architectures have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class _Stated:
    @classmethod
    def of(cls, config: object) -> Self:
        """Read the fields that a configuration has; the others keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(config, field.name)]
        return cls(**{name: getattr(config, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Facts(_Stated):
    """What a model is for, and what it was trained on."""

    tasks: frozenset[Any] = frozenset()  # what it is made for, such as "upscale"
    scale: int | None = None  # factor from the sides of a picture to those of its result; None where it has none
    image_size: tuple[int, int] | None = None  # height and width that it was made for; None for any
    working_size: int | None = None  # shorter side at which a colorizer decides on colors
    n_bits: int | None = None  # bits per subpixel of the images that a density model is a model of
    grid: Any = "levels"  # where their values lie; see ``dequantization.Quantization``
    channels: int = 3  # channels of its images
    classes: int = 0  # number of labels
    labels: tuple[str, ...] = ()  # their names, or none
    styles: tuple[str, ...] = ()  # names of its style directions
    quant_bins: int = 0  # the dequantization noise of its training has width 1 / quant_bins; 0 for a bin of ``n_bits``
    noise: float = 0.0  # deviation of Gaussian noise on its training images, where black is -1 and white 1; 0 for none
    guide_layers: int = 0  # convolutions of the network that makes its own guide; 0 for none


@dataclass(frozen=True, kw_only=True)
class Recommendations(_Stated):
    """How to sample a model, on which the flow itself does not depend; None where its configuration does not state it.

    Configurations describe them; ``engine.defaults`` applies them.
    """

    temperature: float | None = None
    temperatures: tuple[float, float] | None = None  # a colorizer's, instead: for the palette, and for detail
    calm_edges: float | None = None  # stated by upscalers
    coherence: float | None = None
    coherence_scales: tuple[float, float] | None = None
    saturation: float | None = None
    starter_memory: bool | None = None
    guide_strength: float | None = None
    boldest_temperature: float = 0.0  # 0 for a multiple of ``temperature``
    guide_temperatures: tuple[float, float] = (0.0, 0.0)
    guide_match: float | None = None
    guide_sharpness: float | None = None
    plausible_deviation: float = 0.0  # 0 for not known
    gain_cells: int | None = None
