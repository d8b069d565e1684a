"""The head against torch's own weight normalisation, as DINO's published head is built."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from training.dino.heads import DINOHead


class GELU(nn.Module):
    """x times the normal distribution's share below x."""

    def forward(self, x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2


class Normalise(nn.Module):
    def forward(self, x):
        return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def published_head(head: DINOHead) -> nn.Sequential:
    """DINO's `DINOHead` with norm_last_layer, given the same weights: the lengths g are 1 and stay so."""
    layers = []
    for mine in head.mlp[::2]:
        linear = nn.Linear(mine.in_features, mine.out_features, dtype=torch.float64)
        linear.load_state_dict(mine.state_dict())
        layers += [linear, GELU()]
    layers[-1] = Normalise()  # in place of the last GELU
    last = weight_norm(nn.Linear(mine.out_features, len(head.prototypes), bias=False, dtype=torch.float64))
    with torch.no_grad():
        last.parametrizations.weight.original0.fill_(1)
        last.parametrizations.weight.original1.copy_(head.prototypes)
    last.parametrizations.weight.original0.requires_grad_(False)
    return nn.Sequential(*layers, last)


def test_scores_and_gradients_are_those_of_the_published_head():
    torch.manual_seed(0)
    head = DINOHead(12, prototypes=7, hidden=20, bottleneck=5).double()
    for layer in head.mlp[::2]:
        nn.init.normal_(layer.weight, std=0.5)
        nn.init.normal_(layer.bias)
    theirs = published_head(head)
    tokens = torch.randn(2, 3, 12, dtype=torch.float64)
    weights = torch.randn(2, 3, 7, dtype=torch.float64)  # of a made-up loss, so that every score counts
    (head(tokens) * weights).sum().backward()
    (theirs(tokens) * weights).sum().backward()
    np.testing.assert_allclose(head(tokens).detach(), theirs(tokens).detach(), rtol=1e-9, atol=1e-12)
    # In the order of the layers, ours having the prototypes first.
    prototypes, *ours = [p.grad for p in head.parameters()]
    for mine, published in zip(
        [*ours, prototypes], [p.grad for p in theirs.parameters() if p.requires_grad], strict=True
    ):
        np.testing.assert_allclose(mine, published, rtol=1e-9, atol=1e-12)


def test_the_shape_is_three_layers_and_the_prototypes():
    head = DINOHead(12, prototypes=9, hidden=20, bottleneck=6)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "mlp.0.weight": (20, 12),
        "mlp.0.bias": (20,),
        "mlp.2.weight": (20, 20),
        "mlp.2.bias": (20,),
        "mlp.4.weight": (6, 20),
        "mlp.4.bias": (6,),
        "prototypes": (9, 6),
    }
    assert head(torch.randn(4, 2, 12)).shape == (4, 2, 9)
    assert head(torch.randn(0, 12)).shape == (0, 9)


def test_it_starts_as_published():
    """Truncated normals of 0.02, no biases; scores are cosines whatever the tokens' lengths."""
    torch.manual_seed(0)
    head = DINOHead(64, prototypes=200, hidden=128, bottleneck=32)
    for layer in head.mlp[::2]:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    scores = head(1000 * torch.randn(10, 64))
    assert scores.abs().max() <= 1 + 1e-6
    assert scores.std().item() == pytest.approx(32**-0.5, rel=0.2)  # random directions in 32 dimensions


def test_a_token_of_zeros_gives_no_nan():
    head = DINOHead(8, prototypes=5, hidden=16, bottleneck=4)
    tokens = torch.zeros(2, 8, requires_grad=True)
    scores = head(tokens)
    scores.sum().backward()
    assert torch.isfinite(scores).all()
    assert torch.isfinite(tokens.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
