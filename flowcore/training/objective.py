"""Objectives: what a training step makes smaller, as a module, so that torch can share it among processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import Condition
from ..dequantization import Uniform, VariationalDequantizer, dequantize, quantization, round_to_integers
from ..errors import FlowError
from ..flow import Flow
from ..images.resize import shrink
from ..likelihood import bits_per_dim, log_prob, log_weight
from ..networks import RRDBEncoder
from .recipe import Stage


class AbsoluteError(nn.Module):
    """The mean absolute error of an encoder's own enlargement, and of that shrunk again.

    ``mean |picture(lr) - hr| + weight * mean |shrink(picture(lr)) - lr|``.
    """

    unit = "L1"

    def __init__(self, flow: Flow, lr_consistency: float = 0.0) -> None:
        """Hold the encoder.

        Args:
            flow: An upscaler.
            lr_consistency: Weight of the second term.
        """
        super().__init__()
        self.encoder = lr_encoder(flow)
        self.lr_consistency = lr_consistency

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """Draw the random numbers of a step: none."""
        return None

    def forward(self, hr: Tensor, lr: Tensor, noise: None = None) -> Tensor:
        """Compute the loss.

        Args:
            hr: ``(B, 3, H, W)`` in [0, 1].
            lr: ``(B, 3, H / scale, W / scale)``, likewise.
            noise: None.

        Returns:
            A scalar.
        """
        picture = self.encoder.picture(lr)
        loss = F.l1_loss(picture, hr)
        if self.lr_consistency:
            loss = loss + self.lr_consistency * F.l1_loss(shrink(picture, self.encoder.scale), lr)
        return loss


class Likelihood(nn.Module):
    """Bits per dimension of dequantized images under a flow, mean over the batch.

    The noise is what the model's configuration names: ``quant_bins`` (SRFlow, wider than the 8-bit step on purpose),
    otherwise that of its own bins, from a variational dequantizer where it has one. With ``balanced``, the mean over
    levels of each level's own bits per dimension, with uniform noise.

    Source: Theis et al., "A note on the evaluation of generative models", section 3.1; Glow, section 3.
    """

    unit = "bits/dim"

    def __init__(self, flow: Flow, *, balanced: bool = False) -> None:
        """Hold the flow.

        Args:
            flow: The model.
            balanced: Whether every level's latents count the same, however few they are.
        """
        super().__init__()
        self.flow = flow
        self.balanced = balanced
        self.encoder_frozen = False

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the random numbers of a step.

        Args:
            shape: Of the images, ``(B, C, H, W)``.
            generator: On the CPU.

        Returns:
            Uniform in [0, 1), or normal for a variational dequantizer.
        """
        dequantizer = None if self.balanced else _variational(self.flow)
        return (dequantizer or Uniform()).noise(shape, generator)

    def forward(self, x: Tensor, source: Tensor | None, noise: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            x: ``(B, C, H, W)`` in [0, 1].
            source: Of the condition; None for unconditional models.
            noise: From ``noise``.

        Returns:
            A scalar.
        """
        flow = self.flow
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            cond = None if source is None else flow.encode_condition(source)
        if self.balanced:
            return bits_by_level(flow, x, cond, noise).mean()
        return bits(flow, x, cond, noise).mean()


Objective = AbsoluteError | Likelihood


def objective(flow: Flow, stage: Stage) -> Objective:
    """Make the objective of a stage.

    Args:
        flow: What it trains.
        stage: Of a recipe.

    Returns:
        The objective.

    Raises:
        FlowError: If the model has no LR encoder to train with L1.
    """
    if stage.objective == "l1":
        return AbsoluteError(flow, stage.lr_consistency)
    return Likelihood(flow, balanced=stage.balanced)


def bits(flow: Flow, x: Tensor, cond: Condition | None, noise: Tensor) -> Tensor:
    """Bits per dimension of dequantized images, with the noise that the model's configuration names.

    Args:
        flow: The model.
        x: ``(B, C, H, W)`` in [0, 1].
        cond: Its condition.
        noise: See ``Likelihood.noise``.

    Returns:
        ``(B,)``.
    """
    quant_bins = getattr(flow.config, "quant_bins", 0)
    if quant_bins:
        return bits_per_dim(log_prob(flow, dequantize(x, quant_bins, noise), cond), x[0].numel())
    k = round_to_integers(x, quantization(flow).n_bits)
    return bits_per_dim(log_weight(flow, k, cond, dequantizer=_variational(flow), noise=noise), x[0].numel())


def bits_by_level(flow: Flow, x: Tensor, cond: Condition | None, noise: Tensor) -> Tensor:
    """Bits per dimension of every level's own latents.

    Args:
        flow: The model.
        x: ``(B, C, H, W)`` in [0, 1].
        cond: Its condition.
        noise: Uniform in [0, 1), like ``x``.

    Returns:
        ``(levels, B)``, finest first.
    """
    bins = quantization(flow)
    k = round_to_integers(x, bins.n_bits)
    latents, shares = flow.by_position(bins.place(k, noise.to(k)).to(x), cond)
    per_level = [
        bits_per_dim(share.sum((1, 2)), z[0].numel(), bins.width) for z, share in zip(latents, shares, strict=True)
    ]
    return torch.stack(per_level)


@torch.no_grad()
def initialize(flow: Flow, x: Tensor, source: Tensor | None, seed: int) -> None:
    """Set a flow's data-dependent parameters from one large batch.

    Args:
        flow: The model.
        x: ``(B, C, H, W)`` in [0, 1], on the flow's device.
        source: Of the condition, or None.
        seed: Of the noise.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    cond = None if source is None else flow.encode_condition(source)
    noise = Uniform().noise(tuple(x.shape), generator).to(x)
    quant_bins = getattr(flow.config, "quant_bins", 0)
    if quant_bins:
        flow.initialize(dequantize(x, quant_bins, noise), cond)
        return
    bins = quantization(flow)
    k = round_to_integers(x, bins.n_bits)
    dequantizer = _variational(flow)
    if dequantizer is not None:
        dequantizer.initialize(dequantizer.noise(tuple(k.shape), generator).to(k), k)
    flow.initialize(bins.place(k, noise.to(k)).to(x), cond)


def lr_encoder(flow: Flow) -> RRDBEncoder:
    """Give the encoder of an upscaler.

    Args:
        flow: A model.

    Returns:
        Its LR encoder.

    Raises:
        FlowError: If it has none.
    """
    if not isinstance(flow.encoder, RRDBEncoder):
        raise FlowError(
            f"Objective l1 trains an LR encoder; a {flow.architecture} model has none. Use objective likelihood."
        )
    return flow.encoder


def _variational(flow: Flow) -> VariationalDequantizer | None:
    return flow.dequantizer if isinstance(flow.dequantizer, VariationalDequantizer) else None
