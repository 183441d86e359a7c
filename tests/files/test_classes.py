"""What counts as a class, on every Python: 3.10 takes ``dict[str, Tensor]`` for one."""

from types import SimpleNamespace

import pytest
from stable_baselines3.common import policies
from torch import Tensor, nn

from acktr.files import allowed as classes
from acktr.files.codec import encode
from acktr.presets import classes as presets_classes


class AliasOf310:
    """Passes for a type and is none, as generic aliases do on Python 3.10."""

    __module__ = "builtins"
    __qualname__ = "dict"

    @property
    def __class__(self):
        return type


ALIASES = [AliasOf310(), dict[str, Tensor], list[int], tuple[nn.Module, ...], type[nn.Module]]


def test_the_stand_in_behaves_as_generic_aliases_do_on_310():
    assert isinstance(ALIASES[0], type)
    with pytest.raises(TypeError, match="must be a class"):
        issubclass(ALIASES[0], nn.Module)


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: type(alias).__name__)
def test_an_alias_is_no_class(alias):
    assert not classes.is_class(alias)
    module = SimpleNamespace(Alias=alias, Tanh=nn.Tanh, number=3)
    assert list(classes._classes_in(module)) == [nn.Tanh]
    assert list(presets_classes._module_classes(module)) == [nn.Tanh]


@pytest.mark.parametrize("cls", [nn.Tanh, int, type, policies.ActorCriticPolicy], ids=str)
def test_a_class_is_one_whatever_its_metaclass(cls):
    assert classes.is_class(cls)


def test_an_alias_among_arguments_is_named_as_missing():
    structure, _, missing = encode({"a": dict[str, int], "b": nn.Tanh}, name_missing=True)
    assert structure["b"] == {"$": "class", "name": "torch.nn.modules.activation.Tanh"}
    assert structure["a"]["$"] == "missing"
    assert list(missing) == ["a"]
