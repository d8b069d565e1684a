"""Linear layers by oneDNN: the same numbers as torch's own, and out of the way where they do not fit."""

import pytest
import torch
from torch.nn import functional as F

from training.engine import onednn_linear as linear
from training.engine.onednn_linear import quick_linear


@pytest.fixture
def calls(monkeypatch) -> list:
    """The shapes that oneDNN was given; also on machines where it would not be taken, as long as it is there."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch carries no oneDNN")
    found, product = [], linear._product
    monkeypatch.setattr(linear, "_available", lambda: True)
    monkeypatch.setattr(linear, "_product", lambda x, *rest: found.append(tuple(x.shape)) or product(x, *rest))
    return found


def results(layer: torch.nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.arange(out.numel(), dtype=out.dtype).sin().view_as(out)  # so that every number counts
    return [out, *torch.autograd.grad((out * weights).sum(), (x, *layer.parameters()))]


@pytest.mark.parametrize("shape", [(5,), (4, 37), (2, 3, 6)])
@pytest.mark.parametrize("width", [16, 96])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_torchs_own(calls, shape, width, bias):
    torch.manual_seed(1)
    layer, x = torch.nn.Linear(48, width, bias=bias), torch.randn(*shape, 48)
    wanted = results(layer.double(), x.double())
    with quick_linear():
        found = results(layer.float(), x)
    assert len(calls) == 3  # forwards, and backwards to the input and to the weight
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, atol=2e-5, rtol=2e-5)  # sums of up to 148 products


def test_an_input_that_does_not_lie_row_by_row(calls):
    torch.manual_seed(1)
    layer, x = torch.nn.Linear(24, 8), torch.randn(24, 30).t()
    wanted = results(layer, x)
    with quick_linear():
        for mine, theirs in zip(results(layer, x), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert calls


def test_what_is_frozen_gets_no_gradient_and_costs_nothing(calls):
    layer = torch.nn.Linear(8, 4).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    with quick_linear():
        layer(x).sum().backward()
    assert len(calls) == 2
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))


def test_other_precisions_no_rows_and_single_vectors_are_left_to_torch(calls):
    layer = torch.nn.Linear(8, 4)
    with quick_linear():
        assert layer(torch.zeros(0, 8)).shape == (0, 4)
        assert layer(torch.zeros(8)).shape == (4,)
        assert F.linear(torch.zeros(2, 8).double(), layer.weight.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.zeros(2, 8)).dtype == torch.bfloat16
    layer(torch.zeros(2, 8))  # outside the context
    assert not calls


def test_the_same_every_time(calls):
    """A resumed run has to repeat what the first one did, bit for bit."""
    torch.manual_seed(1)
    layer, x = torch.nn.Linear(96, 384), torch.randn(64, 37, 96)
    with quick_linear():
        for mine, again in zip(results(layer, x), results(layer, x), strict=True):
            assert torch.equal(mine, again)
