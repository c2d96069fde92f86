"""A causal transformer: every patch of a sequence sees itself and those before it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalTransformer(nn.Module):
    """Pre-norm transformer on a sequence of T patches: ``(B, T, inputs)`` to ``(B, T, outputs)``.

    ``h = proj_in(x) + position + label``; per layer ``h += proj(attention(norm(h)))``, causal, and ``h +=
    last(gelu(first(norm(h))))``; the output is ``proj_out(h)``, which starts at 0. ``label`` is a weighted sum over the
    classes; with no label the weights are equal. ``head`` is the width of an attention head, ``hidden`` that of the
    MLPs' hidden layers.

    Source: Zhai et al., "Normalizing flows are capable generative models" (TarFlow, 2024), section 3.1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        positions: int,
        width: int,
        layers: int,
        head: int,
        hidden: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(inputs, width)
        self.position = nn.Parameter(0.01 * torch.randn(positions, width))
        self.label = nn.Parameter(0.01 * torch.randn(classes, width)) if classes else None
        self.layers = nn.ModuleList(_Layer(width, head, hidden) for _ in range(layers))
        self.proj_out = nn.Linear(width, outputs)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict after every patch; ``labels`` are weights of the classes, ``(B or 1, K)``."""
        h = self.proj_in(x) + self.position + self._embedding(labels)
        for layer in self.layers:
            h = layer(h)
        return self.proj_out(h)

    def stepwise(self, labels: Tensor | None, temperature: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return a function from the next patch ``(B, inputs)`` to what ``forward`` predicts after it.

        It keeps the keys and values of earlier patches. ``temperature`` ``(B,)`` divides the attention's scores.
        """
        embedding = self._embedding(labels)
        caches = [_KeyValueCache(len(self.position)) for _ in self.layers]

        def step(x: Tensor) -> Tensor:
            h = self.proj_in(x)[:, None] + self.position[caches[0].length] + embedding  # caches grow by a patch a step
            for layer, cache in zip(self.layers, caches, strict=True):
                h = layer(h, cache, temperature)
            return self.proj_out(h[:, 0])

        return step

    def _embedding(self, labels: Tensor | None) -> Tensor:
        """Mix the labels' embeddings, (B or 1, 1, width)."""
        if self.label is None or labels is None:
            return self.position.new_zeros(1, 1, 1)
        return (labels.to(self.label.dtype) @ self.label)[:, None]


class _KeyValueCache:
    """Keys and values of one layer so far."""

    def __init__(self, positions: int) -> None:
        self.length = 0
        self._positions = positions
        self._both: Tensor | None = None  # (2, B, heads, T, head)

    def append(self, new: Tensor) -> Tensor:
        """Append keys and values of the next patch, and return all, ``(2, B, heads, length, head)``."""
        if torch.is_grad_enabled():  # writing in place would break autograd
            self._both = new if self._both is None else torch.cat([self._both, new], dim=3)
        else:
            if self._both is None:
                self._both = new.new_empty(*new.shape[:3], self._positions, new.shape[4])
            self._both[:, :, :, self.length : self.length + 1] = new
        self.length += 1
        return self._both[:, :, :, : self.length]


class _Layer(nn.Module):
    def __init__(self, width: int, head: int, hidden: int) -> None:
        super().__init__()
        self.head = head
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, width)

    def forward(self, h: Tensor, cache: _KeyValueCache | None = None, temperature: Tensor | None = None) -> Tensor:
        """Process a whole sequence, or, with a cache, its next patch; ``h`` is ``(B, T or 1, width)``."""
        qkv = self.qkv(self.norm_attention(h)).unflatten(2, (3, -1, self.head))  # (B, T, 3, heads, head)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head)
        if temperature is not None:
            queries = queries / temperature.to(queries.dtype)[:, None, None, None]
        if cache is not None:
            keys, values = cache.append(torch.stack([keys, values]))
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=cache is None)
        h = h + self.proj(attended.transpose(1, 2).flatten(2))
        return h + self.last(F.gelu(self.first(self.norm_hidden(h))))
