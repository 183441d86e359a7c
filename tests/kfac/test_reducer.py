"""Gradients are means over processes, whenever they left."""

import copy
import functools
import itertools

import torch
import torch.distributed as dist
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, comm
from acktr.kfac.comm import Comm
from acktr.kfac.reducer import Reducer
from tests.helpers.processes import run_in_processes

WIDTHS = (3, 8, 8, 1)
SMALL, LARGE = 10**6, 64  # bytes from which a bucket leaves by itself: all wait, or none


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(WIDTHS)]
    return nn.Sequential(*layers).double()


def loss_of(rank, model, scale=1.0):
    torch.manual_seed(1 + rank)
    return scale * model(torch.randn(8, WIDTHS[0]).double()).square().mean()


def gradients(scales, ranks):
    """What a mean over processes has to be."""
    model = network()
    for rank in range(ranks):
        for scale in scales:
            (loss_of(rank, model, scale) / ranks).backward()
    return [p.grad for p in model.parameters()]


def reduce(rank, size, what, alone_from):
    comm.ALONE_FROM = alone_from
    model = network()
    talk = Comm(dist.group.WORLD)
    reducer, order = Reducer(talk), []
    send = talk.sum
    talk.sum = lambda tensors, **kwargs: (order.append("sent"), send(tensors, **kwargs))[1]
    model[0].weight.register_post_accumulate_grad_hook(lambda _: order.append("last gradient"))
    params = list(model.parameters())
    reducer.watch(params)
    loss = loss_of(rank, model)
    if what == "unused" and rank:
        params[2].requires_grad_(False)
        loss = loss_of(rank, model)
    loss.backward()
    if what == "again":
        loss_of(rank, model, 2.0).backward()
    elif what == "clipped":
        for p in params:
            p.grad.mul_(3.0)
    elif what == "replaced":
        params[-1].grad = 3.0 * params[-1].grad
    elif what == "none" or (what == "dropped by one" and rank):
        params[2].grad = None
    (of_all,) = reducer.mean(params, [loss.detach()])
    return [p.grad for p in params], of_all, order


def cases(rank, size, alone_from):
    return {what: reduce(rank, size, what, alone_from) for what in CASES}


CASES = ["once", "again", "clipped", "replaced", "dropped by one", "unused", "none"]


def test_means_whatever_happens_between_the_backward_pass_and_the_step():
    for alone_from in (SMALL, LARGE):
        for found in run_in_processes(2, cases, alone_from):
            once = gradients([1.0], 2)
            expected = {case: [g.clone() for g in once] for case in CASES}
            expected["again"] = gradients([1.0, 2.0], 2)
            expected["clipped"] = [3.0 * g for g in once]
            expected["replaced"][-1] = 3.0 * once[-1]
            model = network()
            loss_of(0, model).backward()
            expected["dropped by one"][2] = expected["unused"][2] = model[1].weight.grad / 2
            expected["none"][2] = None
            for case in CASES:
                grads, of_all, _ = found[case]
                for own, mean in zip(grads, expected[case], strict=True):
                    torch.testing.assert_close(own, mean, atol=1e-14, rtol=0, msg=f"{case} {alone_from}")
                losses = [loss_of(rank, network()).detach() for rank in range(2)]
                torch.testing.assert_close(of_all, sum(losses) / 2)


def test_what_is_large_leaves_during_the_backward_pass():
    for found in run_in_processes(2, cases, LARGE):
        order = found["once"][2]
        assert order.index("sent") < order.index("last gradient")
    for found in run_in_processes(2, cases, SMALL):
        assert found["once"][2] == ["last gradient"]


def step_once(rank, size):
    messages = []
    for name in ("all_reduce", "all_gather"):
        send = getattr(dist, name)
        counted = functools.partial(lambda send, *x, **y: (messages.append(1), send(*x, **y))[1], send)
        setattr(comm.dist, name, counted)
    torch.set_default_dtype(torch.float32)
    model = network().float()
    kfac = KFAC(model, process_group=dist.group.WORLD)
    for _ in range(2):
        x = torch.randn(8, WIDTHS[0])
        with kfac.capture():
            out = model(x)
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        loss = out.square().mean()
        loss.backward()
        kfac.synchronize(loss)
        kfac.step()
    twin = copy.deepcopy(kfac)
    return messages, twin.state_dict()["curvature_calls"]


def test_a_step_of_a_small_model_is_one_message():
    for messages, calls in run_in_processes(2, step_once):
        assert len(messages) == 2
        assert calls == 2


def give_up_a_step(rank, size):
    """The loss was bad: no step after the means. The next step must not take its gradients for means."""
    model = network()
    kfac = KFAC(model, process_group=dist.group.WORLD)
    for gives_up in (True, False):
        torch.manual_seed(rank)
        with kfac.capture():
            out = model(torch.randn(8, WIDTHS[0]).double())
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        if gives_up:
            kfac.synchronize()
        else:
            kfac.step()
    return [p.grad for p in model.parameters()]


def test_after_a_step_that_was_given_up_gradients_are_averaged_again():
    first, second = run_in_processes(2, give_up_a_step)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
