"""What :mod:`acktr.kfac.measured` refuses: then nothing has moved."""

import pytest
import torch
import torch.nn.functional as F

from acktr.kfac import KFAC, CrossEntropy, SquaredError
from tests.helpers.kfac_steps import learn, mlp, step_of


def test_another_batch_is_refused():
    net, x, y = mlp(), torch.randn(16, 4), torch.randint(3, (16,))
    kfac = KFAC(net)
    with kfac.capture():
        logits = net(x)
    kfac.update_curvature(CrossEntropy(logits))
    F.cross_entropy(logits, y).backward()
    kfac.step(forward=lambda: CrossEntropy(net(x)))
    with kfac.capture():
        logits = net(x)
    kfac.update_curvature(CrossEntropy(logits))
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="of 8 samples where update_curvature saw CrossEntropy of 16"):
        kfac.step(forward=lambda: CrossEntropy(net(x[:8])))
    assert_level(net, before)


def assert_level(net, before):
    for p, b in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b)


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize(
    ("other", "error"),
    [
        (lambda net, x: net(x), TypeError),
        (lambda net, x: SquaredError(net(x)), ValueError),
        (lambda net, x: [CrossEntropy(net(x)), CrossEntropy(net(x))], ValueError),
        (lambda net, x: CrossEntropy(net(x[:8])), ValueError),
        (lambda net, x: 1 / 0, ZeroDivisionError),
    ],
)
def test_a_forward_pass_of_something_else_takes_the_step_back(other, error, steps_before):
    net, x, y = mlp(), torch.randn(16, 4), torch.randint(3, (16,))
    kfac = KFAC(net, target_kl=0.01)
    for _ in range(steps_before):
        step_of(kfac, net, x, y)
    before, _ = learn(kfac, net, x, y)
    with pytest.raises(error):
        kfac.step(forward=lambda: other(net, x))
    assert_level(net, before)


def test_another_batch_of_the_same_size_is_told_by_a_kl_without_a_step():
    net, x, y = mlp(), torch.randn(16, 4), torch.randint(3, (16,))
    kfac = KFAC(net, lr=1.0, target_kl=1e-4)
    step_of(kfac, net, x, y)
    before, _ = learn(kfac, net, x, y)
    with pytest.raises(ValueError, match="where no step is taken: run the batch that was captured"):
        kfac.step(forward=lambda: CrossEntropy(net(x + 1.0)))
    assert_level(net, before)
