"""Torch operators: values, derivatives of any order, and every way torch calls them.

Truth is the textbook formula in torch, float64, which torch differentiates by itself.
"""

from __future__ import annotations

import gc
import itertools
import math
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import noisyflow
from noisyflow import _core, _device, _reference, mixture_log_density, runtime

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import noisyflow.operators  # noqa: E402  registers them
from fake_cuda import FakeCuda  # noqa: E402  needs torch
from noisyflow import _second_derivatives  # noqa: E402

Tensor = Any
double = torch.float64
# Torch warns of what it does itself: forward mode and compilers use torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def textbook(
    points: Tensor, centers: Tensor, noise_std: Any, weights: Tensor | None = None
) -> Tensor:
    """The formula, with every pair in memory; not logsumexp, whose tangents err."""
    d = centers.shape[1]
    squares = (points[:, None, :] - centers).square().sum(2)
    w = centers.new_full(centers.shape[:1], 1 / len(centers))
    w = w if weights is None else weights
    scaled = -squares / (2 * noise_std**2)
    top = scaled.amax(1).detach()
    sums = ((scaled - top[:, None]).exp() * w).sum(1)
    s = torch.as_tensor(noise_std, dtype=centers.dtype)
    return top + sums.log() - d * (s.log() + 0.5 * math.log(2 * math.pi))


def ours(
    points: Tensor, centers: Tensor, noise_std: Any, weights: Tensor | None = None
) -> Tensor:
    return mixture_log_density(points, centers, noise_std, weights=weights)


def problem(
    rng: np.random.Generator, m: int = 4, n: int = 5, d: int = 3, dtype: Any = double
) -> list[Tensor]:
    """Points, centers, noise_std and weights."""
    w = rng.random(n) + 0.1
    return [
        torch.tensor(value, dtype=dtype)
        for value in (
            rng.normal(size=(m, d)),
            rng.normal(size=(n, d)),
            0.7,
            w / w.sum(),
        )
    ]


def with_gradients(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def of_logits(points: Tensor, centers: Tensor, noise_std: Tensor, z: Tensor) -> Tensor:
    """Finite differences of the weights would not sum to 1."""
    return ours(points, centers, noise_std, torch.softmax(z, 0))


def assert_close(got: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Relative to the largest entry, for sums cancel in others."""
    if isinstance(expected, tuple | list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, rtol)
        return
    got, expected = got.detach(), expected.detach()
    assert got.shape == expected.shape
    atol = rtol * max(1.0, float(expected.abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=atol, check_dtype=False)


# -- derivatives ---------------------------------------------------------------


@pytest.mark.parametrize("has_all", [False, True])
def test_operators_are_what_torch_expects(
    has_all: bool, rng: np.random.Generator
) -> None:
    """Schema, autograd registration, fake tensors, and what is traced of them."""
    points, centers, noise_std, weights = problem(rng)
    tensors = [points, centers, *((noise_std, weights) if has_all else (0.7, None))]
    tracked = [v.clone().requires_grad_() if torch.is_tensor(v) else v for v in tensors]
    name = "Tensor" if has_all else "default"
    forward = getattr(torch.ops.noisyflow.mixture_log_density, name)
    backward = getattr(torch.ops.noisyflow.mixture_log_density_backward, name)
    torch.library.opcheck(forward, (*tensors, None))
    torch.library.opcheck(forward, (*tracked, 0.1))
    known = ours(*tensors)
    mask = [True, True, has_all, has_all]
    torch.library.opcheck(backward, (known + 9, *tensors, known, mask, None))
    mask[1] = False
    torch.library.opcheck(backward, (known + 9, *tracked, known, mask, 0.0))


def test_gradients_are_those_of_finite_differences(rng: np.random.Generator) -> None:
    inputs = with_gradients(problem(rng))
    assert torch.autograd.gradcheck(
        of_logits,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def test_second_derivatives_are_those_of_finite_differences(
    rng: np.random.Generator,
) -> None:
    inputs = with_gradients(problem(rng))
    assert torch.autograd.gradgradcheck(
        of_logits, inputs, check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (50, 70, 1), (7, 90, 20)])
def test_gradients_are_those_of_the_textbook(
    m: int, n: int, d: int, dtype: Any, rng: np.random.Generator
) -> None:
    exact = problem(rng, m, n, d)
    exact[3][n // 2] = 0
    exact[3] /= exact[3].sum()
    if n == 1:
        exact[3][:] = 1
    g = torch.tensor(rng.normal(size=m))
    kind = torch.float32 if dtype is np.float32 else double
    inputs = with_gradients([t.to(kind) for t in exact])
    result = ours(*inputs)
    assert result.dtype == kind
    got = torch.autograd.grad(result, inputs, g.to(kind))
    # The rounded inputs are the problem: exact from there.
    exact = with_gradients([t.detach().double() for t in inputs])
    expected = torch.autograd.grad(textbook(*exact), exact, g.to(kind).double())
    assert [t.dtype for t in got] == [kind] * 4
    assert_close(got, expected, rtol=2e-5 if dtype is np.float32 else 1e-11)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:])
def test_only_what_is_wanted_is_computed(
    wanted: tuple[bool, ...],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    kernel = _core.log_density_gradients

    def spy(*args: Any) -> Any:
        asked.append(args[6:10])
        return kernel(*args)

    monkeypatch.setattr(_core, "log_density_gradients", spy)
    inputs = [
        t.requires_grad_(want) for t, want in zip(problem(rng), wanted, strict=True)
    ]
    ours(*inputs).sum().backward()
    points, centers, noise_std, weights = wanted
    assert asked == [(points, centers, weights, noise_std)]
    expected = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    textbook(*expected).sum().backward()
    for got, want in zip(inputs, expected, strict=True):
        assert (got.grad is None) == (want.grad is None)
        if want.grad is not None:
            assert_close(got.grad, want.grad)


def test_a_noise_std_of_another_dtype_keeps_its_own(rng: np.random.Generator) -> None:
    points, centers, _, _ = problem(rng, dtype=torch.float32)
    noise_std = torch.tensor(0.7, dtype=double, requires_grad=True)
    ours(points, centers, noise_std).sum().backward()
    assert noise_std.grad.dtype == double
    exact = torch.tensor(0.7, dtype=double, requires_grad=True)
    textbook(points.double(), centers.double(), exact).sum().backward()
    assert_close(noise_std.grad, exact.grad, rtol=1e-6)


def test_third_derivatives(rng: np.random.Generator) -> None:
    def third(function: Callable[..., Tensor], inputs: list[Tensor]) -> Any:
        loss = function(*inputs).sin().sum()
        for _ in range(2):
            grads = torch.autograd.grad(loss, inputs, create_graph=True)
            loss = sum((g**2).sum() for g in grads)
        return torch.autograd.grad(loss, inputs)

    inputs = problem(rng)
    expected = third(textbook, with_gradients(inputs))
    assert_close(third(ours, with_gradients(inputs)), expected)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f: torch.func.grad(lambda q: f(q).sin().sum()),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": torch.func.hessian,
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "jacrev of jacfwd": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    "jacrev of hessian": lambda f: torch.func.jacrev(torch.func.hessian(f)),
    "jacfwd of hessian": lambda f: torch.func.jacfwd(torch.func.hessian(f)),
    "jvp": lambda f: lambda q: torch.func.jvp(f, (q,), (q.cos(),)),
    "jvp of jvp": lambda f: (
        lambda q: torch.func.jvp(
            lambda p: torch.func.jvp(f, (p,), (p.cos(),))[1], (q,), (q.sin(),)
        )
    ),
    "grad of jvp": lambda f: torch.func.grad(
        lambda q: math.prod(torch.func.jvp(f, (q,), (q.cos(),))).sum()
    ),
    "vjp": lambda f: lambda q: torch.func.vjp(f, q)[1](f(q)),
}


@pytest.mark.parametrize("argument", range(4))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func(
    transform: str, argument: int, rng: np.random.Generator
) -> None:
    inputs = problem(rng, 2, 3, 2)

    def of_one(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        # Not linear, so that the value matters in a derivative's derivative.
        return lambda q: function(*inputs[:argument], q, *inputs[argument + 1 :]).sin()

    got = TRANSFORMS[transform](of_one(ours))(inputs[argument])
    assert_close(got, TRANSFORMS[transform](of_one(textbook))(inputs[argument]))


def test_forward_mode_without_torch_func(rng: np.random.Generator) -> None:
    """Reverse over forward, with only some tangents."""

    def derivatives(function: Callable[..., Tensor]) -> Any:
        x, y, s, w = with_gradients(problem(rng_of_both()))
        tangent = torch.ones_like(y, requires_grad=True)
        with forward_ad.dual_level():
            result = function(x, forward_ad.make_dual(y, tangent), s, w)
            along = forward_ad.unpack_dual(result).tangent
        return torch.autograd.grad((along**2).sum(), (x, y, s, w, tangent))

    def rng_of_both() -> np.random.Generator:
        return np.random.default_rng(5)

    assert_close(derivatives(ours), derivatives(textbook))


@pytest.mark.parametrize(
    "dims",
    list(itertools.product((None, 0, 1), (None, 0, 1), (None, 0), (None, 0)))[1:],
)
def test_vmap_of_values_and_gradients(
    dims: tuple[int | None, ...], rng: np.random.Generator
) -> None:
    inputs = [
        t
        if dim is None
        else torch.stack([t, 1.1 * t if t.ndim != 1 else t.roll(1)], dim)
        for t, dim in zip(problem(rng), dims, strict=True)
    ]
    members = [
        [
            t if dim is None else t.select(dim, i)
            for t, dim in zip(inputs, dims, strict=True)
        ]
        for i in range(2)
    ]
    expected = torch.stack([textbook(*one) for one in members])
    assert_close(torch.vmap(ours, in_dims=dims)(*inputs), expected)
    for argnums in ((0,), (0, 1, 2, 3)):

        def gradient(function: Callable[..., Tensor], argnums: Any = argnums) -> Any:
            return torch.func.grad(lambda *q: function(*q).sin().sum(), argnums)

        got = torch.vmap(gradient(ours), in_dims=dims)(*inputs)
        each = [gradient(textbook)(*one) for one in members]
        assert_close(got, [torch.stack(part) for part in zip(*each, strict=True)])


@pytest.mark.parametrize("argnums", [(0,), (0, 1, 2, 3)])
@pytest.mark.parametrize("dims", [(0, None, None, None), (None, 1, 0, None), (1,) * 2])
def test_vmap_over_nothing(
    dims: tuple[int | None, ...], argnums: tuple[int, ...], rng: np.random.Generator
) -> None:
    dims = (*dims, None, None)[:4]
    inputs = [
        t if dim is None else t.unsqueeze(dim).narrow(dim, 0, 0)
        for t, dim in zip(problem(rng), dims, strict=True)
    ]
    shapes = [(4, 3), (5, 3), (), (5,)]
    value = torch.vmap(ours, in_dims=dims)(*inputs)
    assert value.shape == (0, 4)
    gradient = torch.func.grad(lambda *q: ours(*q).sum(), argnums)
    for grad, i in zip(
        torch.vmap(gradient, in_dims=dims)(*inputs), argnums, strict=True
    ):
        assert grad.shape == (0, *shapes[i])
        assert grad.dtype == double


def test_vmap_composes(rng: np.random.Generator) -> None:
    points = torch.tensor(rng.normal(size=(3, 4, 3)))
    more_centers = torch.tensor(rng.normal(size=(2, 5, 3)))
    _, centers, noise_std, weights = problem(rng)
    nested = torch.vmap(
        torch.vmap(ours, in_dims=(0, None, None)), in_dims=(None, 0, None)
    )(points, more_centers, 0.7)
    expected = torch.stack(
        [torch.stack([textbook(x, y, 0.7) for x in points]) for y in more_centers]
    )
    assert_close(nested, expected)

    def batched(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return torch.vmap(lambda q: function(q, centers, noise_std, weights))

    for transform in (torch.func.jacrev, torch.func.jacfwd, TRANSFORMS["grad"]):
        assert_close(
            transform(batched(ours))(points), transform(batched(textbook))(points)
        )
    # Reverse mode from outside, through a batch of points and to what is shared.
    leaves = with_gradients([points, centers, noise_std, weights])
    results = []
    for function in (ours, textbook):
        values = torch.vmap(lambda q, f=function: f(q, *leaves[1:]))(leaves[0])
        results.append(torch.autograd.grad(values.sin().sum(), leaves))
    assert_close(*results)


def test_a_batch_of_points_is_one_call(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    for name in ("log_density", "log_density_gradients"):
        kernel = getattr(_core, name)
        monkeypatch.setattr(
            _core, name, lambda *args, k=kernel: calls.append(len(args[0])) or k(*args)
        )
    points, centers, _, _ = problem(rng)
    torch.vmap(torch.func.grad(lambda q: ours(q, centers, 0.7).sum()))(
        torch.stack([points, points + 1, points + 2])
    )
    assert calls == [12, 12]
    torch.func.jacrev(lambda q: ours(q, centers, 0.7))(points)
    assert calls[2:] == [4, 4]  # all rows of the Jacobian from one


# -- compilers -----------------------------------------------------------------


def run(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = with_gradients(inputs)
    value = function(*leaves)
    value.backward()
    return [value.detach(), *(t.grad for t in leaves if t.grad is not None)]


PROGRAMS: dict[str, Callable[..., Tensor]] = {
    "a number": lambda x, y, s, w: ours(x * 2, y, 0.5).sum() + 1,
    "an int": lambda x, y, s, w: mixture_log_density(
        x, y, 1, weights=torch.softmax(w, 0), max_lost_mass=0
    ).sum(),
    "four gradients": lambda x, y, s, w: (
        of_logits(x * 2, y.tanh(), s.exp(), w).sin().sum()
    ),
    "a symbolic number": lambda x, y, s, w: ours(x, y, x.shape[0] / 3).sum(),
}


@pytest.mark.parametrize(
    ("program", "dynamic"),
    [
        ("a number", False),
        ("an int", True),
        ("four gradients", False),
        ("four gradients", True),
        ("a symbolic number", True),
    ],
)
def test_compiled_without_graph_breaks(
    program: str, dynamic: bool, rng: np.random.Generator
) -> None:
    torch._dynamo.reset()
    function = PROGRAMS[program]
    compiled = torch.compile(
        function, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for m in (4, 6):
        inputs = problem(rng, m)
        assert_close(run(compiled, inputs), run(function, inputs))
        assert_close(compiled(*inputs), function(*inputs))


def test_compiled_by_inductor(rng: np.random.Generator) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    function = PROGRAMS["four gradients"]
    compiled = torch.compile(function, fullgraph=True)
    inputs = problem(rng)
    assert_close(run(compiled, inputs), run(function, inputs))


@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_compiled_transforms(transform: str, rng: np.random.Generator) -> None:
    torch._dynamo.reset()
    points, centers, _, _ = problem(rng)

    def derivative(function: Callable[..., Tensor]) -> Callable[[Tensor], Any]:
        return TRANSFORMS[transform](lambda q: function(q, centers, 0.7))

    compiled = torch.compile(derivative(ours), fullgraph=True, backend="aot_eager")
    assert_close(compiled(points), derivative(textbook)(points))
    batched = torch.compile(
        torch.vmap(derivative(ours)), fullgraph=True, backend="aot_eager"
    )
    batch = torch.stack([points, points + 1])
    assert_close(batched(batch), torch.vmap(derivative(textbook))(batch))


def test_values_are_checked_when_compiled_code_runs(rng: np.random.Generator) -> None:
    torch._dynamo.reset()
    points, centers, noise_std, _ = problem(rng)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    compiled(points, centers, noise_std)
    with pytest.raises(ValueError, match="points must be finite, got nan"):
        compiled(points * torch.nan, centers, noise_std)
    with pytest.raises(ValueError, match="noise_std must be positive"):
        compiled(points, centers, -noise_std)


class Model(torch.nn.Module):
    def __init__(self, centers: Tensor) -> None:
        super().__init__()
        self.centers = torch.nn.Parameter(centers.clone())
        self.noise_std = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, points: Tensor) -> Tensor:
        return mixture_log_density(points.tanh(), self.centers, self.noise_std)


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_the_operator_and_its_gradients(
    strict: bool, rng: np.random.Generator
) -> None:
    points, centers, _, _ = problem(rng)
    model = Model(centers)
    rows = {"points": {0: torch.export.Dim("m")}}
    exported = torch.export.export(model, (points,), strict=strict, dynamic_shapes=rows)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "noisyflow.mixture_log_density.Tensor" in targets
    more = torch.cat([points, points + 1])
    twin = exported.module()
    assert_close(twin(more), model(more))
    model(more).sum().backward()
    twin(more).sum().backward()
    for name, parameter in twin.named_parameters():
        assert_close(parameter.grad, model.get_parameter(name).grad)


def test_fake_tensors_meet_the_same_refusals(rng: np.random.Generator) -> None:
    points, centers, _, weights = (t.to("meta") for t in problem(rng))
    result = ours(points, centers, 0.7, weights)
    assert result.device.type == "meta"
    assert result.shape == (4,)
    for arguments, error, message in (
        ((points[0], centers, 0.7), ValueError, r"points must have shape \(n, d\)"),
        ((points, centers[:0], 0.7), ValueError, "centers must not be empty"),
        ((points, centers[:, :2], 0.7), ValueError, "same dimension"),
        ((points.float(), centers, 0.7), TypeError, "same dtype"),
        ((points.half(), centers.half(), 0.7), TypeError, "float16"),
        ((points, centers, 0.7, weights[:2]), ValueError, r"weights must have shape"),
        ((points, centers, 0.7, weights.float()), TypeError, "dtype of centers"),
        ((points, centers, weights), ValueError, r"noise_std must be.*shape \(\)"),
    ):
        with pytest.raises(error, match=message):
            ours(*arguments)


# -- surroundings --------------------------------------------------------------


def test_what_is_saved_is_as_large_as_the_inputs(rng: np.random.Generator) -> None:
    inputs = with_gradients(problem(rng, 60, 70, 3))
    sizes = []

    def pack(tensor: Tensor) -> Any:
        sizes.append(tensor.numel())
        return tensor.numpy(force=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        result = ours(*inputs)
        grads = torch.autograd.grad(result.sum(), inputs, create_graph=True)
    assert max(sizes) == 210
    assert_close(grads, torch.autograd.grad(textbook(*inputs).sum(), inputs))
    # Through the hooks' own copies, second derivatives would be lost: not their own.
    second = torch.autograd.grad(ours(*inputs).sum(), inputs, create_graph=True)
    assert_close(grads, second)


def test_autocast_leaves_the_dtype_alone(rng: np.random.Generator) -> None:
    points, centers, _, _ = problem(rng, dtype=torch.float32)
    expected = run(lambda x, y: ours(x, y, 0.7).sum(), [points, centers])
    layer = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(lambda x, y: ours(x, y, 0.7).sum(), [points, centers])
        grad = torch.func.hessian(lambda q: ours(q, centers, 0.7).sum())(points)
        with pytest.raises(
            TypeError, match=r"points must be float32 or float64.*bfloat16"
        ):
            ours(layer(points), centers, 0.7)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    outside = torch.func.hessian(lambda q: ours(q, centers, 0.7).sum())(points)
    assert torch.equal(grad, outside)


def test_results_do_not_depend_on_threads(rng: np.random.Generator) -> None:
    inputs = problem(rng, 300, 4000, 5, torch.float32)

    def everything() -> list[Tensor]:
        leaves = with_gradients(inputs)
        value = ours(*leaves)
        grads = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        (more,) = torch.autograd.grad(grads[0].sum(), leaves[1])
        return [value.detach(), *(g.detach() for g in grads), more]

    torch.use_deterministic_algorithms(True)
    try:
        first = everything()
        runtime.set_num_threads(3)
        second = everything()
    finally:
        runtime.set_num_threads(None)
        torch.use_deterministic_algorithms(False)
    # The last one is torch's own, whose matrix sums may depend on its threads.
    assert all(torch.equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))
    assert_close(second[5], first[5], rtol=1e-6)


def _negated(t: Tensor) -> Tensor:
    """A view whose memory holds the opposite."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.T.clone().T if t.ndim == 2 else t,
    "every second row": lambda t: torch.repeat_interleave(t, 2, 0)[::2],
    "columns of a wider one": lambda t: (
        torch.cat([t, t], 1)[:, : t.shape[1]] if t.ndim == 2 else t
    ),
    "an odd offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(
        t.shape
    ),
    "negated": _negated,
    "not a leaf": lambda t: t * 1,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: Any, rng: np.random.Generator) -> None:
    kind = torch.float32 if dtype is np.float32 else double
    points, centers, noise_std, weights = problem(rng, dtype=kind)
    lay = LAYOUTS[layout]

    def laid_out(x: Tensor, y: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return ours(lay(x), lay(y), s, lay(w)).sin().sum()

    inputs = [points, centers, noise_std, weights]
    expected = run(lambda *args: ours(*args).sin().sum(), inputs)
    got = run(laid_out, inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(laid_out(*inputs), expected[0])


def test_expanded_tensors(rng: np.random.Generator) -> None:
    """Rows that share their memory; also what comes back, the gradient of a sum."""
    x, y, s, w = problem(rng)
    got = run(
        lambda x, y: ours(x[:1].expand(4, 3), y[:1].expand(5, 3), s, w).sum(), [x, y]
    )
    expected = run(
        lambda x, y: textbook(x[:1].expand(4, 3), y[:1].expand(5, 3), s, w).sum(),
        [x, y],
    )
    assert_close(got, expected)


def test_no_points(dtype: Any) -> None:
    kind = torch.float32 if dtype is np.float32 else double
    inputs = with_gradients(
        [
            *(torch.zeros(0, 2, dtype=kind), torch.ones(3, 2, dtype=kind)),
            *(torch.tensor(0.5, dtype=kind), torch.full((3,), 1 / 3, dtype=kind)),
        ]
    )
    result = ours(*inputs)
    assert result.shape == (0,)
    grads = torch.autograd.grad(result.sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in grads), inputs)
    for some in (grads, second):
        for grad, value in zip(some, inputs, strict=True):
            assert torch.equal(grad, torch.zeros_like(value))
    batch = torch.vmap(lambda q: ours(q, inputs[1], 0.5))(inputs[0].expand(2, 0, 2))
    assert batch.shape == (2, 0)


X, Y = torch.zeros(3, 2), torch.ones(4, 2)
HALF = torch.tensor(0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], Y, 1.0), ValueError, r"points must have shape \(n, d\)"),
        ((X, torch.ones(4, 3), 1.0), ValueError, r"same dimension.*\(3, 2\).*\(4, 3\)"),
        ((X.int(), Y, 1.0), TypeError, "points must be float32 or float64.*int32"),
        ((X.half(), Y.half(), 1.0), TypeError, "float16"),
        ((X.bfloat16(), Y.bfloat16(), 1.0), TypeError, r"bfloat16; .*points.float\(\)"),
        ((X.cfloat(), Y.cfloat(), 1.0), TypeError, "complex64"),
        ((X.double(), Y, 1.0), TypeError, "same dtype.*float64 and.*float32"),
        ((X, Y.to("meta"), 1.0), ValueError, "points and centers.*cpu and meta"),
        (
            (X, Y, 1.0, HALF.expand(4).to("meta")),
            ValueError,
            "points and weights.*meta",
        ),
        (
            (X, Y, HALF.to("meta")),
            ValueError,
            "points and noise_std must be on the same device, got cpu and meta",
        ),
        ((X.to_sparse(), Y, 1.0), TypeError, r"dense.*sparse_coo.*points.to_dense\(\)"),
        ((X, Y.to_sparse(), 1.0), TypeError, r"centers must be a dense tensor"),
        ((X, Y.numpy(), 1.0), TypeError, "both be NumPy arrays or both torch"),
        (
            (X + torch.nan, Y, 1.0),
            ValueError,
            r"points must be finite, got nan at \[0, 0",
        ),
        ((X, Y, HALF * 0), ValueError, "noise_std must be positive"),
        ((X, Y, HALF * torch.nan), ValueError, "noise_std must be positive and finite"),
        (
            (X, Y, HALF.expand(1)),
            ValueError,
            r"a tensor of shape \(\), got shape \(1,\); pass noise_std\[0\]",
        ),
        ((X, Y, torch.tensor(1)), TypeError, "noise_std must be float32.*int64"),
        ((X, Y, True), TypeError, "noise_std must be a real number, got bool"),
        ((X, Y, "1"), TypeError, "noise_std must be a real number, got str"),
        ((X, Y, 1e30), ValueError, "rescale"),
        ((X, Y, 1.0, HALF.expand(3)), ValueError, r"weights must have shape \(4,\)"),
        ((X, Y, 1.0, HALF.expand(4)), ValueError, "sum to 1, got a sum of 2"),
        ((X, Y, 1.0, HALF.double().expand(4)), TypeError, "dtype of centers"),
        ((X + 1e30, Y, 1.0), ValueError, "overflow"),
    ],
)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ours(*arguments)
    tracked = [
        v.clone().requires_grad_()
        if torch.is_tensor(v) and v.is_floating_point()
        else v
        for v in arguments
    ]
    if all(torch.is_tensor(v) for v in arguments[:2]):
        with pytest.raises(error, match=message):
            ours(*tracked)


@pytest.mark.parametrize("lost", [-0.1, 1.0, torch.nan, "1", True])
def test_a_bad_max_lost_mass_is_named(lost: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_lost_mass must be"):
        mixture_log_density(X, Y, 1.0, max_lost_mass=lost)


def test_more_centers_than_can_be_counted_are_refused() -> None:
    many = torch.zeros(1, 1).expand(2**31 - 1, 1)
    with pytest.raises(ValueError, match="centers must have at most 2147483646 rows"):
        ours(torch.zeros(1, 1), many, 1.0)


def test_numpy_weights_and_numbers_go_with_tensors(rng: np.random.Generator) -> None:
    points, centers, noise_std, weights = problem(rng)
    frozen = weights.numpy()[::-1].copy()
    frozen.flags.writeable = False
    got = ours(points, centers.flip(0), np.float64(0.7), frozen)
    assert torch.equal(got, ours(points, centers.flip(0), 0.7, weights.flip(0)))
    assert_close(got, textbook(points, centers, noise_std, weights))


def test_large_problems_take_the_path_of_arrays(rng: np.random.Generator) -> None:
    points, centers, *_ = problem(rng, 20_000, 20_000, 1, torch.float32)
    assert noisyflow.explain(points, centers, 0.01).path != "every pair"
    for lost in (None, 0.0, 1e-3):
        got = mixture_log_density(points, centers, 0.01, max_lost_mass=lost)
        expected = mixture_log_density(
            points.numpy(), centers.numpy(), 0.01, max_lost_mass=lost
        )
        assert np.array_equal(got.numpy(), expected)


def test_subclasses_and_modes(rng: np.random.Generator) -> None:
    class Marked(torch.Tensor):
        pass

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    points, centers, noise_std, weights = problem(rng)
    expected = ours(points, centers, noise_std, weights)
    marked = ours(points.as_subclass(Marked), centers, noise_std, weights)
    assert torch.equal(marked.as_subclass(torch.Tensor), expected)
    parameter = torch.nn.Parameter(points)
    with Recorder():
        ours(parameter, centers, noise_std, weights).sum().backward()
    assert "noisyflow.mixture_log_density.Tensor" in names
    assert "noisyflow.mixture_log_density_backward.Tensor" in names
    assert parameter.grad is not None


def test_without_gradients_nothing_is_recorded(rng: np.random.Generator) -> None:
    inputs = with_gradients(problem(rng))
    with torch.no_grad():
        assert ours(*inputs).grad_fn is None
    with torch.inference_mode():
        result = ours(*inputs)
        assert result.is_inference()
        assert ours(*(t * 1 for t in inputs)).is_inference()
    assert torch.equal(result, ours(*inputs).detach())
    assert ours(*problem(rng)).grad_fn is None
    with torch.no_grad(), torch.enable_grad():
        assert ours(*inputs).requires_grad


def test_a_graph_is_used_once_and_guards_what_it_saved(
    rng: np.random.Generator,
) -> None:
    inputs = with_gradients(problem(rng))
    result = ours(*inputs).sum()
    result.backward(retain_graph=True)
    result.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()
    result = ours(*inputs).sum()
    with torch.no_grad():
        inputs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_nothing_is_kept_alive(rng: np.random.Generator) -> None:
    gc.disable()
    try:
        inputs = with_gradients(problem(rng))
        result = ours(*inputs)
        torch.autograd.grad(result.sum(), inputs, create_graph=False)
        watched = [weakref.ref(t) for t in (*inputs, result)]
        del inputs, result
        assert [w() for w in watched] == [None] * 5
    finally:
        gc.enable()


def test_many_threads_at_once(rng: np.random.Generator) -> None:
    inputs = problem(rng, 40, 50, 3)
    expected = run(lambda *args: ours(*args).sin().sum(), inputs)
    wrong: list[Any] = []

    def work() -> None:
        try:
            for _ in range(20):
                leaves = with_gradients(inputs)
                value = ours(*leaves).sin().sum()
                pending = threading.Thread(target=value.backward)
                pending.start()
                pending.join()
                grads = [value.detach(), *(t.grad for t in leaves)]
                pairs = zip(grads, expected, strict=True)
                wrong.extend(1 for a, b in pairs if not torch.equal(a, b))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("is_weighted", [False, True])
def test_tensors_on_a_gpu_go_to_its_kernels(
    is_weighted: bool,
    dtype: Any,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With formulas in place of the kernels: values, gradients, second derivatives."""

    class Counted(FakeCuda):
        def log_density(self, *args: Any) -> Any:
            calls.append("log_density")
            return super().log_density(*args)

        def gradients(self, *args: Any) -> Any:
            calls.append("gradients")
            return super().gradients(*args)

    calls: list[str] = []
    module = Counted()
    # Not PosingTensor, which does not survive a call of an operator.
    monkeypatch.setattr(_device, "is_on_device", torch.is_tensor)
    monkeypatch.setattr(_device, "extension", lambda: module)
    kind = torch.float32 if dtype is np.float32 else double
    inputs = problem(rng, 9, 8, 3, kind)[: 4 if is_weighted else 3]

    def derivatives(function: Callable[..., Tensor], leaves: list[Tensor]) -> Any:
        value = function(*leaves)
        grads = torch.autograd.grad(value.sin().sum(), leaves, create_graph=True)
        more = torch.autograd.grad(sum((g**2).sum() for g in grads), leaves)
        return [value, *grads, *more]

    _device._check_device.cache_clear()
    leaves = with_gradients(inputs)
    got = derivatives(ours, leaves)
    _device._check_device.cache_clear()
    # The last one because the derivative of a sine has the value in it.
    assert calls == ["log_density", "gradients", "gradients"]
    exact = [t.double().requires_grad_() for t in inputs]
    expected = derivatives(textbook, exact)
    rtol = 1e-5 if dtype is np.float32 else 1e-11
    assert_close(got, expected, rtol)


# -- another torch -------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The operators are yet to be imported."""
    monkeypatch.delitem(sys.modules, "noisyflow.operators")
    monkeypatch.delattr(noisyflow, "operators")
    return monkeypatch


@pytest.mark.parametrize(
    "name",
    [
        "torch._functorch.utils.enable_single_level_autograd_function",
        "torch._C._AutoDispatchBelowAutograd",
        "torch._C._after_autograd_keyset",
        "torch._C._are_functorch_transforms_active",
        "torch.autograd.forward_ad._set_fwd_grad_enabled",
        # Not _current_level: torch.autograd.forward_ad breaks without it.
    ],
)
def test_values_need_no_private_name_of_torch(
    name: str, unloaded: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    inputs = problem(rng)
    expected = textbook(*inputs)
    unloaded.delattr(name)
    assert_close(ours(*inputs), expected)
    assert_close(ours(*inputs[:2], 0.7, inputs[3].numpy()), expected)
    tracked = with_gradients(inputs)
    found = rf"torch {re.escape(torch.__version__)} .*{name.split('.')[-1]}.* 2\.13"
    with pytest.raises(RuntimeError, match=found):
        ours(*tracked)
    with torch.no_grad():
        assert_close(ours(*tracked), expected)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.vmap(f)(x[None]),
        lambda f, x: torch.func.grad(lambda q: f(q).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
    ],
    ids=["vmap", "grad", "jvp"],
)
def test_transforms_are_refused_without_the_operators(
    transform: Callable[[Any, Tensor], Any],
    unloaded: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    points, *rest = problem(rng)
    unloaded.delattr("torch._C._after_autograd_keyset")
    with pytest.raises(Exception, match="this was written for torch"):
        transform(lambda x: ours(x, *rest), points)


# -- numbers at the edge -------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.005, 1.0])
def test_far_and_coincident_points_have_finite_derivatives(
    noise_std: float, dtype: Any
) -> None:
    kind = torch.float32 if dtype is np.float32 else double
    centers = torch.tensor(
        [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [100.0, 3.0]], dtype=kind
    )
    points = torch.tensor([[0.0, 0.0], [1e3, -1e3], [0.5, 0.0]], dtype=kind)
    weights = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=kind)
    inputs = with_gradients([points, centers, torch.tensor(noise_std), weights])
    grads = torch.autograd.grad(ours(*inputs).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in grads[:3]), inputs)
    for grad in (*grads, *second):
        assert torch.isfinite(grad).all()


def test_a_noise_std_gradient_beyond_its_dtype_is_the_largest_number() -> None:
    """|x - y|^2 / s^3 = 1e40 in float64; the log-density, of 1e30, fits."""
    noise_std = torch.tensor(1e-10, requires_grad=True)
    value = ours(torch.tensor([[1e5]]), torch.zeros(1, 1), noise_std)
    (grad,) = torch.autograd.grad(value.sum(), noise_std)
    assert grad.dtype == torch.float32
    assert grad == torch.finfo(torch.float32).max


def test_chunks_change_nothing(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second() -> Any:
        leaves = with_gradients(inputs)
        grads = torch.autograd.grad(
            ours(*leaves).sin().sum(), leaves, create_graph=True
        )
        hessian = torch.func.jvp(lambda *q: ours(*q), tuple(inputs), tuple(inputs))[1]
        return [*torch.autograd.grad(sum((g**2).sum() for g in grads), leaves), hessian]

    inputs = problem(rng, 7, 6, 2)
    expected = second()
    monkeypatch.setattr(_second_derivatives, "_CHUNK", 25)  # two points at a time
    assert_close(second(), expected, rtol=1e-13)


# -- arrays --------------------------------------------------------------------


def test_arrays_do_not_import_torch() -> None:
    code = (
        "import sys, numpy as np, noisyflow\n"
        "noisyflow.mixture_log_density(np.zeros((2, 1)), np.ones((3, 1)), 0.5)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tensors_and_arrays_have_the_same_bits(
    dtype: Any, rng: np.random.Generator
) -> None:
    kind = torch.float32 if dtype is np.float32 else double
    points, centers, _, weights = problem(rng, 30, 40, 3, kind)
    got = ours(points, centers, 0.7, weights).numpy()
    arrays = (points.numpy(), centers.numpy(), 0.7)
    expected = mixture_log_density(*arrays, weights=weights.numpy())
    assert np.array_equal(got, expected)
    exact = _reference.mixture_log_density(*arrays, weights.numpy())
    assert_close(torch.from_numpy(expected), torch.from_numpy(exact), rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: noisyflow.posterior_moments(x, x, 1.0),
        lambda x: noisyflow.mixture_block_log_sums(x, x, 1.0, [0, 1, 2], [0, 3]),
        lambda x: noisyflow.prepare(x, 1.0),
        lambda x: noisyflow.explain(x, x, 1.0),
        lambda x: noisyflow.entropy_bounds(x, 1.0),
    ],
)
def test_other_functions_say_what_is_differentiable(
    function: Callable[[Tensor], Any],
) -> None:
    x = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"detach\(\).*mixture_log_density.*entropy"):
        function(x)
