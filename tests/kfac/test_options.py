"""Groups of options: what they refuse, how they are given, and the names of 0.1.0."""

import copy
import inspect
import pickle
from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature, Periods, StepRule
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.ekfac import EigenvalueCorrectedBlock
from acktr.kfac.options import EARLIER, GROUPS, grouped


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def options_of(kfac: KFAC) -> tuple[Curvature, Periods, StepRule]:
    rule = {f.name: kfac.param_groups[0][f.name] for f in fields(StepRule)}
    return kfac.curvature, kfac.periods, StepRule(**rule)


def test_there_are_about_ten_arguments():
    parameters = inspect.signature(KFAC).parameters.values()
    assert len([p for p in parameters if p.kind is not p.VAR_KEYWORD]) <= 11


@pytest.mark.parametrize("as_mappings", [False, True])
def test_groups_may_be_mappings_as_a_preset_has_them(as_mappings):
    groups = {
        "curvature": {"approximation": "ekfac", "statistics_dtype": "bfloat16"},
        "periods": {"inverse": 3},
        "step_rule": {"cg_iterations": 2},
    }
    given = groups if as_mappings else {name: GROUPS[name](**of) for name, of in groups.items()}
    assert options_of(KFAC(mlp(), **given)) == (
        Curvature(approximation="ekfac", statistics_dtype=torch.bfloat16),
        Periods(inverse=3),
        StepRule(cg_iterations=2),
    )


OF_BEFORE = {
    "fisher": "monte-carlo", "stat_decay": 0.9, "inverse": "eigen", "weight_sharing": "reduce",
    "recurrent": "independent", "max_factor_size": 7, "statistics_dtype": torch.bfloat16,
    "factor_period": 2, "inverse_period": 3, "burn_in": 4, "inverse_refresh": "staggered",
    "cg_iterations": 2, "exact_scaling": True, "adapt_damping": True,
}  # fmt: skip


@pytest.mark.parametrize("name", OF_BEFORE)
def test_an_argument_of_before_is_taken_and_told_where_it_is(name):
    group, key = EARLIER[name]
    kind = GROUPS[group]
    with pytest.warns(FutureWarning, match=rf"{name} is now {group}={kind.__name__}\({key}=...\)\."):
        kfac = KFAC(mlp(), **{name: OF_BEFORE[name]})
    expected = KFAC(mlp(), **{group: {key: OF_BEFORE[name]}})
    assert options_of(kfac) == options_of(expected)


def test_all_arguments_of_before_have_a_place():
    assert OF_BEFORE.keys() == EARLIER.keys()


def test_ekfac_was_an_inverse():
    with pytest.warns(
        FutureWarning, match=r"inverse is now curvature=Curvature\(approximation=\.\.\.\)"
    ):
        kfac = KFAC(mlp(), inverse="ekfac", curvature=Curvature(stat_decay=0.5))
    assert kfac.curvature == Curvature(approximation="ekfac", stat_decay=0.5)


def test_arguments_of_now_stay_as_they_are():
    groups = {"curvature": {"fisher": "monte-carlo"}, "momentum": 0.5}
    assert grouped(groups) == (groups, [])
    assert grouped({"periods": Periods(inverse=3)}) == ({"periods": {"inverse": 3}}, [])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"lrr": 1.0}, TypeError, "KFAC has no argument 'lrr'"),
        ({"stat_dcay": 1.0}, TypeError, "KFAC has no argument 'stat_dcay': did you mean 'stat_decay'"),
        ({"curvature": {"stat_dcay": 1.0}}, ValueError, "curvature has no 'stat_dcay': .* stat_decay"),
        ({"periods": {"zzz": 1.0}}, ValueError, "periods has no 'zzz': did you mean factor, inverse"),
        ({"periods": 3}, TypeError, r"periods must be Periods\(\.\.\.\), or a mapping .*, got 3"),
        ({"step_rule": {"cg_iterations": -1}}, ValueError, "cg_iterations must be 0 or more, got -1"),
        ({"curvature": {"layers": 3}}, ValueError, "layers must be a mapping by names of layers, got 3"),
    ],
)
def test_what_is_wrong_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        KFAC(mlp(), **wrong)


# ---------------------------------------------------------------------- layers by name


def test_a_layer_may_differ_in_each_thing():
    layers = {"0": {"approximation": "ekfac", "max_factor_size": 2}, "2": {"weight_sharing": "reduce"}}
    net = mlp()
    kfac = KFAC(net, curvature=Curvature(inverse="eigen", layers=layers))
    for _ in range(2):
        with kfac.capture():
            out = net(torch.randn(6, 3))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        kfac.step()
    first, second = kfac._all_blocks()
    assert (type(first), type(second)) == (EigenvalueCorrectedBlock, KroneckerBlock)
    assert [x.shape[-1] for x in kfac.factors()["0"]] == [2, 2]
    assert second.options == Curvature(inverse="eigen", weight_sharing="reduce")
    assert options_of(pickle.loads(pickle.dumps(kfac))) == options_of(copy.deepcopy(kfac))


def test_a_chain_ends_where_another_approximation_begins():
    of = Curvature(recurrent="lgm-1", layers={"rnn.head": "diagonal"}).of
    assert of("rnn.weight_ih_l0").recurrent == "lgm-1"
    assert of("rnn.head.weight") == Curvature(approximation="diagonal")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"0": {"stat_decay": 0.5}}, r"layers\['0'\] sets \['stat_decay'\]; it may set approximation"),
        (
            {"0": {"inverse": "lu"}},
            r"layers\['0'\] is not valid: inverse must be one of cholesky, eigen",
        ),
        ({"0": 3}, r"layers\['0'\] is not valid: approximation must be one of kfac, ekfac, diagonal"),
    ],
)
def test_what_a_layer_cannot_have_is_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Curvature(layers=layers)
