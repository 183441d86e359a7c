"""Arguments of 0.1.0 that have moved or are gone: refused by name, understood in files of before."""

import json

import pytest

from acktr import ACKTR
from acktr.errors import ConfigurationError
from acktr.learner.moved import GONE, MOVED
from tests.golden.make import HERE, answers, build
from tests.helpers.saved_models import forge, rebuilt
from tests.helpers.small_envs import small_env

PLACES = {
    "damping": "natural=Natural(damping=...).",
    "momentum": "natural=Natural(kfac_kwargs={'momentum': ...}).",
    "vf_coef": "critic=NaturalCritic(vf_coef=...).",
    "critic_std": "critic=NaturalCritic(std=...), or that of AdamCritic.",
    "critic_norm": "critic=NaturalCritic(...) or critic=AdamCritic(...).",
}


@pytest.mark.parametrize("name", MOVED)
def test_the_constructor_says_where_they_are_now(name):
    with pytest.raises(ConfigurationError) as said:
        ACKTR("MlpPolicy", small_env(), **{name: 1})
    start = (
        f"ACKTR has no {name}: {name} is now {'critic' if MOVED[name][0] == 'critic' else 'natural'}="
    )
    assert str(said.value).startswith(start)
    assert str(said.value).endswith(PLACES.get(name, "."))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("name", set(GONE) - {"use_sde"})  # of which SB3's users are told
def test_the_constructor_says_what_is_gone(name):
    with pytest.raises(ConfigurationError) as said:
        ACKTR("MlpPolicy", small_env(), **{name: 2})
    assert str(said.value) == f"ACKTR has no {name}: {name} is gone, {GONE[name][1]}."


def test_a_model_of_several_steps_keeps_what_it_has_learned():
    def change(members):
        data = {**json.loads(members["data.json"]), "n_actor_updates": 2}
        members["data.json"] = json.dumps(data).encode()
        tail = {name: members.pop(name) for name in ("_stable_baselines3_version", "system_info.txt")}
        members["manifest.json"] = forge(members, members["manifest.json"])
        members.update(tail)

    file = rebuilt((HERE / "model-v1.zip").read_bytes(), change)
    with pytest.warns(UserWarning, match=r"trained with n_actor_updates=2, which is gone \(no task"):
        model = ACKTR.load(file, env=build().env, device="cpu")
    assert answers(model) == answers(ACKTR.load(HERE / "model-v1.zip", device="cpu"))
    assert not hasattr(model, "n_actor_updates")
