"""Model architectures: one a page, a frozen configuration and a builder; ``register`` adds another."""

from .class_conditional import ClassConditionalConfig, class_conditional
from .colorizer import ColorizerConfig, colorizer
from .ffjord import FFJORDConfig, ffjord
from .glow import GlowConfig, glow
from .hcflow import HCFlowConfig, hcflow
from .llflow import LLFlowConfig, llflow
from .realnvp import RealNVPConfig, realnvp
from .registry import ARCHITECTURES, Architecture, build, configure, register
from .residual_flow import ResidualFlowConfig, residual_flow
from .srflow import SRFlowConfig, srflow
from .srflow_da import SRFlowDAConfig, srflow_da
from .tarflow import TarFlowConfig, tarflow

__all__ = ["ARCHITECTURES", "Architecture", "build", "configure", "register"]

register("srflow", SRFlowConfig, srflow)
register("srflow_da", SRFlowDAConfig, srflow_da)
register("glow", GlowConfig, glow)
register("realnvp", RealNVPConfig, realnvp)
register("ffjord", FFJORDConfig, ffjord)
register("class_conditional", ClassConditionalConfig, class_conditional)
register("colorizer", ColorizerConfig, colorizer)
register("hcflow", HCFlowConfig, hcflow)
register("llflow", LLFlowConfig, llflow)
register("residual_flow", ResidualFlowConfig, residual_flow)
register("tarflow", TarFlowConfig, tarflow)
