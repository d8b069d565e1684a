"""The schedules against DINO's published arrays, value for value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training import reference
from training.schedules import cosine, linear, scaled_lr


@pytest.mark.parametrize("warmup_epochs", [0, 1, 4, 10])
@pytest.mark.parametrize(("base", "final"), [(5e-4, 1e-6), (0.04, 0.4), (0.996, 1.0)])
def test_cosine_is_dinos_scheduler(base, final, warmup_epochs):
    """Learning rate, weight decay and momentum; a warm-up as long as the run leaves no cosine."""
    theirs = reference.cosine_scheduler(base, final, 10, 7, warmup_epochs)
    ours = [cosine(step, 70, base, final, 7 * warmup_epochs) for step in range(70)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_the_warm_up_starts_and_ends_where_linspace_does():
    ours = [cosine(step, 30, 1.0, 0.0, 6, warmup_start=0.4) for step in range(6)]
    np.testing.assert_allclose(ours, np.linspace(0.4, 1.0, 6), rtol=1e-12)
    assert cosine(6, 30, 1.0, 0.0, 6) == 1.0  # the cosine's own first value


def test_the_teacher_temperature_is_dinos():
    """Published by epoch: linspace over the warm-up's epochs, then constant."""
    theirs = np.concatenate([np.linspace(0.04, 0.07, 30), np.full(70, 0.07)])
    np.testing.assert_allclose([linear(epoch, 29, 0.04, 0.07) for epoch in range(100)], theirs, rtol=1e-12)


def test_runs_of_no_length_and_of_one_step_have_values():
    assert cosine(0, 0, 2.0, 1.0) == 2.0
    assert cosine(0, 1, 2.0, 1.0) == reference.cosine_scheduler(2.0, 1.0, 1, 1)[0]
    assert cosine(0, 1, 2.0, 1.0, warmup=1) == reference.cosine_scheduler(2.0, 1.0, 1, 1, 1)[0]
    assert cosine(0, 1, 2.0, 1.0, warmup=5) == 0.0
    assert linear(0, 0, 2.0, 1.0) == 2.0
    assert linear(1, 0, 2.0, 1.0) == linear(5, 3, 2.0, 1.0) == 1.0


def test_after_the_last_step_the_end_holds():
    assert cosine(10, 10, 2.0, 1.0, 3) == pytest.approx(1.0)
    assert cosine(99, 10, 2.0, 1.0, 3) == pytest.approx(1.0)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.floats(0, 1), st.floats(0, 1))
def test_no_value_leaves_the_range(step, steps, warmup, start, end):
    """Whatever the lengths, a learning rate is never negative and never above the one that was asked for."""
    value = cosine(step, steps, start, end, warmup)
    assert -1e-12 <= value <= max(start, end) + 1e-12
    assert min(start, end) - 1e-12 <= linear(step, steps, start, end) <= max(start, end) + 1e-12


def test_the_learning_rate_grows_with_the_batch():
    assert scaled_lr(5e-4, 256) == 5e-4
    assert scaled_lr(5e-4, 64) == pytest.approx(1.25e-4)
