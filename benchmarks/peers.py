"""Glow in other libraries, with the same configuration; each library is optional.

Couplings use the same networks everywhere: 3x3, ReLU, 1x1, ReLU, 3x3, with biases, as in normflows. If a library cannot
reproduce a part of normflows' Glow, ``differs`` says so.
"""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SPREAD = 0.001  # of what is added to weights, so that couplings are not the identity that they begin as


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of all programs."""

    levels: int = 3  # each halves the sides
    steps: int = 32  # steps per level
    hidden: int = 512  # width of the networks in couplings
    size: int = 32  # side of the images
    batch: int = 16  # images in a step

    def images(self) -> Tensor:
        """Images of 8 bits, ``(B, 3, H, W)`` in [0, 1]."""
        shape = self.batch, 3, self.size, self.size
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A Glow of another library."""

    model: Any  # holds its parameters
    sample: Callable[[int], Any]  # draws so many images
    log_prob: Callable[[Tensor], Tensor]  # images in [0, 1), (B, 3, H, W), to nats, (B,)
    differs: str = ""  # how it is not what normflows' is; "" if it is that


def normflows_glow(setting: Setting) -> Any:
    """Build normflows' Glow as in its example, with initialized actnorms."""
    nf: Any = importlib.import_module("normflows")
    flows: list[list[Any]] = []
    bases: list[Any] = []
    for depth in range(setting.levels):  # the deepest level comes first
        channels = 3 * 2 ** (setting.levels + 1 - depth)
        side = setting.size // 2 ** (setting.levels - depth)
        blocks = [nf.flows.GlowBlock(channels, setting.hidden) for _ in range(setting.steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        bases.append(nf.distributions.DiagGaussian((channels if depth == 0 else channels // 2, side, side)))
    model = nf.MultiscaleFlow(bases, flows, [nf.flows.Merge() for _ in flows[1:]], class_cond=False)
    k = setting.images() * 255
    with torch.no_grad():
        model.log_prob((k + torch.rand_like(k)) / 256, None)  # initializes its actnorms
    return model


def normflows(setting: Setting) -> Peer:
    """Wrap normflows' Glow, whose weights are copied to ours."""
    model = normflows_glow(setting)
    _stir(model)
    return Peer(model=model, sample=lambda n: model.sample(n), log_prob=lambda x: model.log_prob(x, None))


def nflows(setting: Setting) -> Peer:
    """Build a Glow of nflows' parts, with initialized actnorms."""
    transforms: Any = importlib.import_module("nflows.transforms")
    flows: Any = importlib.import_module("nflows.flows")
    normal: Any = importlib.import_module("nflows.distributions").StandardNormal
    warnings.filterwarnings("ignore", message=".*triangular_solve is deprecated.*")  # nflows calls it
    whole = transforms.MultiscaleCompositeTransform(num_transforms=setting.levels)
    shape = (3, setting.size, setting.size)
    for _ in range(setting.levels):
        squeeze = transforms.SqueezeTransform()
        channels, height, width = squeeze.get_output_shape(*shape)
        parts = [squeeze]
        mask = [0] * (channels // 2) + [1] * (channels // 2)
        for _ in range(setting.steps):
            parts.append(transforms.ActNorm(channels))
            parts.append(transforms.OneByOneConvolution(channels, using_cache=True, identity_init=False))
            parts.append(
                transforms.AffineCouplingTransform(mask, lambda i, o: _WithContext(_network(i, setting.hidden, o)))
            )
        shape = whole.add_transform(transforms.CompositeTransform(parts), (channels, height, width))
    model: Any = flows.Flow(whole, normal([3 * setting.size**2]))
    with torch.no_grad():
        model.train().log_prob(setting.images() * 255 / 256)  # initializes its actnorms
    _stir(model)
    return Peer(
        model=model,
        sample=lambda n: model.sample(n),
        log_prob=lambda x: model.log_prob(x),
        differs="standard normal priors without parameters; a bias and a fixed permutation in every 1x1 convolution, "
        "whose matrices are cached (using_cache=True)",
    )


def freia(setting: Setting) -> Peer:
    """Build a Glow of FrEIA's parts; it has no preset."""
    framework: Any = importlib.import_module("FrEIA.framework")
    modules: Any = importlib.import_module("FrEIA.modules")
    source = framework.InputNode(3, setting.size, setting.size)
    nodes, ends, last = [source], [], source.out0
    options = {"subnet_constructor": lambda i, o: _network(i, setting.hidden, o), "permute_soft": True}
    for level in range(setting.levels):
        nodes.append(framework.Node(last, modules.IRevNetDownsampling, {}))
        for _ in range(setting.steps):
            nodes.append(framework.Node(nodes[-1].out0, modules.AllInOneBlock, options))
        last = gone = nodes[-1].out0
        if level < setting.levels - 1:
            nodes.append(framework.Node(last, modules.Split, {}))
            last, gone = nodes[-1].out0, nodes[-1].out1
        ends.append(framework.OutputNode(gone))
        nodes.append(ends[-1])
    model = framework.GraphINN(nodes, verbose=False)
    _stir(model)
    shapes = [tuple(end.input_dims[0]) for end in ends]

    def sample(n: int) -> Tensor:
        device = next(model.parameters()).device
        return model([torch.randn(n, *shape, device=device) for shape in shapes], rev=True)[0]

    def log_prob(x: Tensor) -> Tensor:
        latents, logdet = model(x)
        density = torch.distributions.Normal(0.0, 1.0)
        return logdet + sum(density.log_prob(z).flatten(1).sum(1) for z in latents)

    return Peer(
        model=model,
        sample=sample,
        log_prob=log_prob,
        differs="AllInOneBlocks: fixed rotations in place of LU 1x1 convolutions, a global affine map in place of "
        "actnorm, scales of exp(2 tanh); standard normal priors without parameters",
    )


PEERS: dict[str, tuple[str, Callable[[Setting], Peer]]] = {  # name on PyPI: module, builder
    "normflows": ("normflows", normflows),
    "nflows": ("nflows", nflows),
    "FrEIA": ("FrEIA", freia),
}


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Conv2d(hidden, outputs, 3, padding=1)
    for p in last.parameters():
        nn.init.zeros_(p)
    first = (nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(inplace=True))
    return nn.Sequential(*first, nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True), last)


class _WithContext(nn.Sequential):
    """A network that nflows can call: it ignores the context."""

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Perturb the zero-initialized last convolutions, reproducibly, and set evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim == 4 and p.requires_grad and not p.any():
            p.add_(SPREAD * torch.randn(p.shape, generator=generator).to(p))
    model.eval().requires_grad_(False)
