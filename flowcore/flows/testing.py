"""The law of ``flowcore/flows/transform.py``, as checks for transforms and models of your own.

``check(transform, x, cond)`` runs all of them. It perturbs every parameter first: a coupling that starts at zero is
nearly the identity, and lets a wrong inverse pass. Every violation is an AssertionError whose first words name the law;
``tests/core/test_laws_bite.py`` holds wrong transforms that must be refused for the right reason.
"""

import copy
import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..device import autocast
from .transforms import NoLogdetMapError, Transform, map_tensors
from .transforms import tensors as tensors

M = TypeVar("M", bound=nn.Module)

TOLERANCE = 1e-9  # relative, for float64


def check(
    transform: Transform[Any, Any],
    x: Tensor,
    cond: object = None,
    *,
    dead: Sequence[str] = (),
    networks: bool = True,
    local: bool = True,
    strength: float = 0.1,
) -> None:
    """Check every law on a copy of the transform with perturbed parameters.

    Args:
        transform: What must obey.
        x: Data, ``(B, C, H, W)`` with B > 1 and H != W, so that a mix-up of axes shows.
        cond: Its condition, or a function from the transform to the condition where the transform encodes it itself.
        dead: Names of the parameters that are known to have no gradient; exactly these may have none.
        networks: Whether the transform holds networks that may run in low precision. Without, autocast must change
            nothing at all.
        local: False where the map spreads a logdet that depends on the data evenly, because a network sees a flattened
            image, or the logdet is that of the whole Jacobian.
        strength: Standard deviation of the perturbation.
    """
    is_fit = x.ndim == 4 and x.shape[0] > 1 and x.shape[2] != x.shape[3]
    assert is_fit, f"x must be (B, C, H, W) with B > 1 and H != W, so that a mix-up of axes shows; got {tuple(x.shape)}"
    transform = perturbed(transform, strength).double()
    x = x.double()
    check_untouched(transform, x, cond)
    check_logdet(transform, x, cond)
    check_items_independent(transform, x, cond)
    check_round_trip(transform, x, cond)
    with suppress(NoLogdetMapError):  # a transform that does not say where its logdet comes from
        check_logdet_map(transform, x, cond)
        if local:
            check_locality(transform, x, cond)
    check_gradients(transform, x, cond, dead)
    check_precision(transform.float(), x.float(), cond, networks)


def perturbed(transform: M, strength: float = 0.1) -> M:
    """Copy a transform and move every parameter away from where it starts."""
    transform = copy.deepcopy(transform)
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter += strength * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    getattr(transform, "normalize", lambda: None)()  # measures the norms of the parameters, as after training
    return transform


# --- one law each -----------------------------------------------------------------------------------------------------


def check_untouched(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> None:
    """Neither direction changes its arguments, its module or global state; the same call gives the same answer."""
    for training in (True, False):
        transform.train(training)
        cond_now = condition(transform, x, cond)
        with torch.no_grad():
            # parameters that take gradients must not be written to without them either
            latent, logdet = _watched(transform, (x, cond_now), transform.forward)
            data = _watched(transform, (latent, cond_now), transform.inverse)
            _equal((latent, logdet), transform.forward(x, cond_now), "forward of the same data gave two answers")
            _equal(data, transform.inverse(latent, cond_now), "inverse of the same latent gave two answers")
    in_training = transform.train().forward(x, condition(transform, x, cond))
    in_evaluation = transform.eval().forward(x, condition(transform, x, cond))
    _equal(in_training, in_evaluation, "forward differs between training and evaluation")


def check_logdet(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> None:
    """Logdet is log|det dz/dx| of autograd's Jacobian, (B,), without the prior."""
    cond = condition(transform, x, cond)
    logdet = transform.forward(x, cond)[1]
    assert logdet.shape == x.shape[:1], f"logdet: shape {tuple(logdet.shape)} instead of {(len(x),)}"
    assert logdet.dtype == x.dtype, f"logdet: dtype {logdet.dtype} for data of {x.dtype}"
    expected = torch.stack([jacobian_logdet(transform, item(x, i), item(cond, i)) for i in range(len(x))])
    _close(logdet, expected, "logdet: differs from slogdet of the Jacobian")


def check_round_trip(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> None:
    """Inverse undoes forward, and forward undoes inverse, also on latents that forward never returned."""
    cond = condition(transform, x, cond)
    latent = transform.forward(x, cond)[0]
    back = transform.inverse(latent, cond)
    assert isinstance(back, Tensor), f"round trip: inverse returns the data only, not {type(back).__name__}"
    _close(back, x, "round trip: inverse(forward(x)) differs from x")

    random_latent = like(latent, seed=21)
    again = transform.forward(transform.inverse(random_latent, cond), cond)[0]
    _close(again, random_latent, "round trip: forward(inverse(z)) differs from z")


def check_logdet_map(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> None:
    """By position, there is the same latent, and amounts on the grid of the data that add up to logdet.

    A flow gives one grid per latent, each with the standard-normal density of that latent in it.
    """
    cond = condition(transform, x, cond)
    latent, expected = transform.forward(x, cond)
    again, amounts = _watched(transform, (x, cond), transform.forward_with_logdet_map)
    _close(again, latent, "by position: the latent differs from forward's")
    if isinstance(latent, list):
        assert isinstance(amounts, list), "by position: not one grid per latent"
        assert len(amounts) == len(latent), "by position: not one grid per latent"
        expected = expected - sum(0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1) for z in latent)
    shape = (x.shape[0], *x.shape[2:])
    for grid in tensors(amounts):
        assert grid.shape == shape, f"by position: shape {tuple(grid.shape)} instead of {shape}"
        assert grid.dtype == x.dtype, f"by position: dtype {grid.dtype} for data of {x.dtype}"
    _close(torch.stack(tensors(amounts)).sum((0, 2, 3)), expected, "by position: the sum differs from logdet")


def check_locality(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> None:
    """By position, the amounts are of their positions: one pixel does not change all of them by one number.

    A logdet that depends on the data and is spread evenly sums up correctly, but as a map it shows nothing.
    """
    cond = condition(transform, x, cond)
    moved = x.clone()
    moved[:, :, 0, 0] *= 0.5  # stays in [0, 1] where the data must
    before, after = (
        torch.stack(tensors(transform.forward_with_logdet_map(data, cond)[1])).sum(0) for data in (x, moved)
    )
    change = (after - before).detach().flatten(1)  # (B, H * W)
    largest, range_ = change.abs().amax(1), change.amax(1) - change.amin(1)
    even = (largest > TOLERANCE) & (range_ <= 1e-3 * largest)
    assert not even.any(), "locality: forward_with_logdet_map spreads evenly what depends on the data"


def check_items_independent(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> None:
    """An item's latent, logdet and data do not depend on its neighbors in the batch."""
    cond = condition(transform, x, cond)
    latent, logdet = transform.forward(x, cond)
    data = transform.inverse(latent, cond)
    for i in range(len(x)):
        latent_i, logdet_i = transform.forward(item(x, i), item(cond, i))
        inverted = transform.inverse(item(latent, i), item(cond, i))
        _close(latent_i, item(latent, i), "items: a latent depends on the rest of the batch")
        _close(logdet_i, item(logdet, i), "items: a logdet depends on the rest of the batch")
        _close(inverted, item(data, i), "items: inverse depends on the rest of the batch")


def check_gradients(transform: Transform[Any, Any], x: Tensor, cond: object = None, dead: Sequence[str] = ()) -> None:
    """Both directions pass gradients to the data and to every parameter, but for those named dead."""
    names = {name for name, _ in transform.named_parameters()}
    assert set(dead) <= names, f"gradients: {sorted(set(dead) - names)} are called dead but do not exist"

    data = x.clone().requires_grad_()
    latent, logdet = transform.forward(data, condition(transform, x, cond))
    _assert_gradients(transform, data, (*tensors(latent), logdet), dead, "forward")

    random_latent = like(latent, seed=22)
    for z in tensors(random_latent):
        z.requires_grad_()
    inverted = transform.inverse(random_latent, condition(transform, x, cond))
    _assert_gradients(transform, tensors(random_latent)[0], (inverted,), dead, "inverse")


def check_precision(transform: Transform[Any, Any], x: Tensor, cond: object = None, networks: bool = True) -> None:
    """Data in float32 stays in float32, also under autocast, where only networks may drop to bfloat16."""
    with torch.no_grad():
        cond_now = condition(transform, x, cond)
        plain = transform.forward(x, cond_now)
        plain_back = transform.inverse(plain[0], cond_now)
        with autocast(torch.device("cpu"), torch.bfloat16):
            cond_low = condition(transform, x, cond)
            low = transform.forward(x, cond_low)
            low_back = transform.inverse(plain[0], cond_low)
    for expected, actual in zip((*tensors(plain), plain_back), (*tensors(low), low_back), strict=True):
        assert expected.dtype == torch.float32, f"precision: float32 data became {expected.dtype}"
        assert actual.dtype == torch.float32, f"precision: autocast leaked, a result is {actual.dtype}"
        assert actual.isfinite().all(), "precision: not finite under autocast"
        if not networks:
            assert torch.equal(actual, expected), "precision: autocast leaked, it changed a transform without networks"
        else:
            scale = expected.abs().max().clamp_min(1)
            assert (actual - expected).abs().max() < 0.1 * scale, (
                "precision: autocast changed the result beyond bfloat16's error"
            )


# --- what the checks are made of --------------------------------------------------------------------------------------


def jacobian_logdet(transform: Transform[Any, Any], x: Tensor, cond: object = None) -> Tensor:
    """log|det dz/dx| of one item, from autograd."""

    def flat(data: Tensor) -> Tensor:
        return torch.cat([z.flatten() for z in tensors(transform.forward(data.view_as(x), cond)[0])])

    matrix = torch.autograd.functional.jacobian(flat, x.flatten(), vectorize=True)
    assert matrix.shape[0] == matrix.shape[1], f"logdet: {matrix.shape[1]} dimensions became {matrix.shape[0]}"
    return torch.linalg.slogdet(matrix)[1]


def condition(transform: Transform[Any, Any], x: Tensor, cond: object) -> Any:
    """Make the condition: call a function of the transform, or convert a condition to the precision of the data."""
    return cond(transform) if callable(cond) else map_tensors(lambda t: t.to(x.dtype), cond)


def item(value: Any, i: int) -> Any:
    """Take one item of a batch, out of any nest of tensors."""
    return map_tensors(lambda t: t[i : i + 1], value)


def like(value: Any, *, seed: int) -> Any:
    """Draw standard-normal tensors of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    return map_tensors(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype), value)


def _watched(transform: Transform[Any, Any], arguments: tuple[Any, Any], call: Callable[..., Any]) -> Any:
    before = [t.clone() for t in tensors(arguments)]
    module, state = _plain_attributes(transform), {k: v.clone() for k, v in transform.state_dict().items()}
    random_states = _random_states()
    result = call(*arguments)
    for was, now in zip(before, tensors(arguments), strict=True):
        assert torch.equal(was, now), f"untouched: {call.__name__} changed its argument"
    after = transform.state_dict()
    assert after.keys() == state.keys(), f"untouched: {call.__name__} changed the module's state"
    for name, was in state.items():
        assert torch.equal(was, after[name]), f"untouched: {call.__name__} changed the module's state, {name}"
    for name, value in _plain_attributes(transform).items():
        assert name in module, f"untouched: {call.__name__} keeps something in the module, {name}"
        assert _same(value, module[name]), f"untouched: {call.__name__} changed the module's attribute {name}"
    for name, now in _random_states().items():
        assert random_states[name] == now, f"untouched: {call.__name__} drew from the global random generator of {name}"
    return result


def _plain_attributes(transform: nn.Module) -> dict[str, Any]:
    """Everything a module remembers besides parameters and buffers; a cache or a flag would be here."""

    def snapshot(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        return copy.copy(value) if isinstance(value, (dict, list, set)) else value

    return {
        f"{path}.{name}": snapshot(value)
        for path, module in transform.named_modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules")
    }


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return isinstance(one, Tensor) and isinstance(two, Tensor) and torch.equal(one, two)
    return one is two or bool(one == two)


def _random_states() -> dict[str, Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002  (the global generator is the point)
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "random": random.getstate(),
    }


def _assert_gradients(
    transform: Transform[Any, Any], data: Tensor, results: tuple[Tensor, ...], dead: Sequence[str], direction: str
) -> None:
    transform.zero_grad(set_to_none=True)
    weights = [like(t, seed=23 + k) for k, t in enumerate(results)]
    total = torch.stack([(t * w).sum() for t, w in zip(results, weights, strict=True)]).sum()
    assert total.requires_grad, f"gradients: {direction} passes none at all"
    total.backward()
    assert data.grad is not None, f"gradients: {direction} passes none to the data"
    assert data.grad.abs().sum() > 0, f"gradients: {direction} passes none to the data"
    for name, parameter in transform.named_parameters():
        gradient = parameter.grad
        alive = gradient is not None and bool((gradient != 0).any())
        assert alive != (name in dead), f"gradients: {direction}: {name} is {'alive' if alive else 'dead'}"
        assert gradient is None or gradient.isfinite().all(), f"gradients: {direction}: {name} is not finite"
    transform.zero_grad(set_to_none=True)


def _equal(one: Any, two: Any, violation: str) -> None:
    for a, b in zip(tensors(one), tensors(two), strict=True):
        assert torch.equal(a, b), f"untouched: {violation}"


def _close(actual: Any, expected: Any, law: str, tolerance: float = TOLERANCE) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert a.shape == b.shape, f"{law}: shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        for side, values in (("the actual value", a), ("the expected value", b)):
            assert values.isfinite().all(), f"{law}: {side} is not finite"  # infinity is within any tolerance of itself
        error, scale = (a - b).abs().max().item(), max(1.0, b.abs().max().item())
        assert error <= tolerance * scale, f"{law}: by {error:.3g}"


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Compare shapes, dtypes and finite values, relative to the largest."""
    assert actual.dtype == expected.dtype
    _close(actual, expected, "close", tolerance)
