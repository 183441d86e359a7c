"""Colored noise, against the spectrum that it is defined by."""

import numpy as np
import pytest
import torch

from acktr.rollout.noise import ColoredNoise, autocorrelations


def drawn(beta, n_steps, shape=(400, 3), seed=0):
    torch.manual_seed(seed)
    noise = ColoredNoise(beta, n_steps)
    return torch.stack([noise.draw(torch.empty(shape)).clone() for _ in range(n_steps)])


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 0.9])
def test_autocorrelations_are_those_of_the_spectrum(beta):
    """The Fourier integral of ``|2 sin(w/2)|^-beta``, with ``w = u^20`` where it has its pole."""
    u = (np.arange(400_000) + 0.5) / 400_000 * np.pi**0.05
    w, jacobian = u**20, 20 * u**19
    density = (2 * np.sin(w / 2)) ** -beta * jacobian
    expected = [(density * np.cos(lag * w)).sum() / density.sum() for lag in range(20)]
    np.testing.assert_allclose(autocorrelations(beta, 20), expected, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_each_step_is_standard_normal_and_correlated_with_those_before(beta):
    noise = drawn(beta, 30)
    flat = noise.flatten(1).double()
    np.testing.assert_allclose(flat.mean(1), 0.0, atol=0.13)  # 1200 numbers each
    np.testing.assert_allclose(flat.var(1), 1.0, atol=0.2)
    assert (flat**4).mean() == pytest.approx(3.0, rel=0.05)
    for lag, expected in enumerate(autocorrelations(beta, 12).tolist()):
        found = (flat[lag:] * flat[: len(flat) - lag]).mean().item()
        assert found == pytest.approx(expected, abs=0.04), lag
    between_environments = (noise[:, ::2] * noise[:, 1::2]).mean().item()
    assert abs(between_environments) < 0.04


def test_white_noise_is_drawn_as_torch_draws_it():
    torch.manual_seed(0)
    expected = torch.stack([torch.empty(4, 3).normal_() for _ in range(7)])
    assert torch.equal(drawn(0.0, 7, (4, 3)), expected)


def test_a_long_rollout_is_drawn_in_blocks():
    noise = drawn(0.5, 1030, (5, 2))
    assert noise.shape == (1030, 5, 2)
    assert noise.isfinite().all()
    assert noise.std() == pytest.approx(1.0, abs=0.1)


def test_noise_has_the_dtype_that_is_asked_for():
    noise = ColoredNoise(0.5, 4)
    assert noise.draw(torch.empty(2, 1, dtype=torch.float64)).dtype == torch.float64
