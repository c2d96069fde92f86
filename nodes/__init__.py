"""The nodes of the pack, in the order of the menu, and what stands in for those that are gone."""

from .choose import (
    FlowcoreBestOf,
    FlowcoreDiversityMap,
    FlowcoreMatchSource,
    FlowcoreTemperatureCurve,
    FlowcoreTemperatureGrid,
)
from .colorize import FlowcoreApplyChroma, FlowcoreColorHints, FlowcoreColorize, FlowcoreEncodeColor
from .explore import FlowcoreLatentExplorer
from .generate import FlowcoreDecode, FlowcoreEncode, FlowcoreSample
from .host import Replacement
from .inputs import guard
from .interop import FlowcoreAsUpscaleModel
from .latents import (
    FlowcoreAttributeDirection,
    FlowcoreInterpolate,
    FlowcoreLoadLatents,
    FlowcoreMixLatents,
    FlowcoreNormalizeLatents,
    FlowcoreSaveLatents,
    FlowcoreScaleLatents,
    FlowcoreStyle,
    FlowcoreVaryLatents,
)
from .load import FlowcoreLoadModel
from .recipe import FlowcoreLoadRecipe, recorded
from .score import FlowcoreScore
from .train import FlowcoreTrain
from .upscale import FlowcoreUpscale

NODES = [
    FlowcoreLoadModel,
    FlowcoreUpscale,
    FlowcoreSample,
    FlowcoreEncode,
    FlowcoreDecode,
    FlowcoreInterpolate,
    FlowcoreMixLatents,
    FlowcoreVaryLatents,
    FlowcoreNormalizeLatents,
    FlowcoreScaleLatents,
    FlowcoreStyle,
    FlowcoreAttributeDirection,
    FlowcoreSaveLatents,
    FlowcoreLoadLatents,
    FlowcoreScore,
    FlowcoreColorize,
    FlowcoreColorHints,
    FlowcoreEncodeColor,
    FlowcoreApplyChroma,
    FlowcoreTrain,
    FlowcoreLatentExplorer,
    FlowcoreAsUpscaleModel,
    FlowcoreLoadRecipe,
    FlowcoreTemperatureGrid,
    FlowcoreTemperatureCurve,
    FlowcoreDiversityMap,
    FlowcoreBestOf,
    FlowcoreMatchSource,
]
for node in (FlowcoreUpscale, FlowcoreSample, FlowcoreColorize):
    recorded(node)
for node in NODES:
    guard(node)

# One entry for every node id that a release had and this one has not. So far all are there.
REPLACEMENTS: list[Replacement] = []
