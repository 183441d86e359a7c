"""Configurations: found by environment id, changed by ``--set``, refused with the nearest name."""

import contextlib
import inspect
import operator

import pytest
import yaml
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from acktr import ACKTR, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.presets import loader, resolve, validate
from acktr.presets.classes import resolve_classes
from acktr.run.build import build_environment, build_model
from acktr.schedules import Linear

RESERVED = {"self", "policy", "env", "seed", "device", "tensorboard_log", "_init_setup_model"}


@pytest.mark.parametrize("family", [*loader.FAMILIES, loader.DEFAULTS])
def test_every_section_of_every_preset_is_valid(family):
    sections = loader._load_family(family)
    assert "default" in sections
    for section in sections:
        name = family if section == "default" else section
        resolution = resolve("CartPole-v1", preset=name)
        assert resolution.configuration.preset == f"{family}: {section}" or section == "default"
        assert resolution.notes == []


@pytest.mark.parametrize(
    ("env_id", "preset"),
    [
        ("CartPole-v1", "classic: CartPole-v1"),
        ("CartPole-v0", "classic: default"),
        ("HalfCheetah-v5", "mujoco: default"),
        ("BreakoutNoFrameskip-v4", "atari: default"),
    ],
)
def test_preset_is_found_by_id(env_id, preset):
    if "mujoco" in preset or "atari" in preset:
        pytest.importorskip("mujoco" if "mujoco" in preset else "ale_py")
    configuration, notes = resolve(env_id)
    assert configuration.preset == preset
    assert configuration.env_id == env_id
    assert not notes


@pytest.mark.parametrize(
    ("env_id", "preset"),
    [
        ("tests.helpers.toy_envs:Toy-v0", "defaults"),
        ("tests.helpers.toy_envs:ToyDict-v0", "defaults"),
        ("tests.helpers.toy_envs:ToyImage-v0", "atari: images"),
        ("FrozenLake-v1", "defaults"),
    ],
)
def test_an_environment_of_no_family_has_the_preset_for_what_it_observes(env_id, preset):
    configuration, notes = resolve(env_id)
    assert configuration.preset == preset
    section = preset.split()[-1]
    assert notes == [
        f"{env_id} belongs to no preset family: using the preset {section!r} (--preset chooses another)."
    ]


def test_what_it_observes_may_be_up_to_its_arguments():
    configuration, _ = resolve("tests.helpers.toy_envs:ToyImage-v0", overrides=["env_kwargs.side=20"])
    assert configuration.preset == "defaults"
    with pytest.raises(ConfigurationError, match=r"ToyImage-v0 cannot be built: .*sid"):
        resolve("tests.helpers.toy_envs:ToyImage-v0", overrides=["env_kwargs={sid: 20}"])


def test_every_constructor_argument_is_a_setting_with_its_default():
    parameters = inspect.signature(ACKTR.__init__).parameters
    configuration, _ = resolve("tests.helpers.toy_envs:Toy-v0", preset="classic")
    arguments = configuration.algorithm_arguments()
    assert set(arguments) == set(parameters) - RESERVED
    section = loader._load_family("classic")["default"]
    expected = {name: section.get(name, parameters[name].default) for name in arguments}
    changed = {"target_kl": Linear(0.02), "critic": NaturalCritic(normalize_targets=True)}
    assert arguments == {**expected, **changed}  # normalize_targets: None, without VecNormalize


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], False),
        (["normalize.norm_reward=false"], True),
        (["normalize=false"], True),
        (["normalize=false", "critic.normalize_targets=false"], False),
        (["critic.normalize_targets=true"], True),
    ],
)
def test_value_targets_are_normalised_where_rewards_are_not(overrides, expected):
    configuration, _ = resolve("HalfCheetah-v5", overrides=overrides)
    assert configuration.algorithm_arguments()["critic"].normalize_targets is expected


@pytest.mark.parametrize(
    ("env_id", "policy", "gone"),
    [
        ("CartPole-v1", "MlpLstmPolicy", ""),
        ("HalfCheetah-v5", "MlpGruPolicy", "natural.damping, critic.damping"),
        (
            "BreakoutNoFrameskip-v4",
            "CnnLstmPolicy",
            "natural.damping, natural.cg_iterations, natural.sub_sampling_factor, critic.batch_size, "
            "critic.n_updates",
        ),
    ],
)
def test_a_memory_has_what_goes_with_whole_sequences(env_id, policy, gone):
    if env_id.startswith("Breakout"):
        pytest.importorskip("ale_py")
    configuration, notes = resolve(env_id, overrides=[f"policy={policy}"])
    arguments = configuration.algorithm_arguments()
    natural, critic = arguments["natural"], arguments["critic"]
    assert (natural.damping, natural.cg_iterations, natural.sub_sampling_factor) == (None, 0, 1)
    assert critic.batch_size is None
    assert getattr(critic, "damping", None) is None
    assert [note for note in notes if "remembers" in note] == (
        [f"{policy} remembers: {gone} of the preset are left out, which are for policies that do not "
         "(--set gives them)."] if gone else []
    )  # fmt: skip


def test_a_memory_keeps_what_is_given():
    given = ["policy=MlpLstmPolicy", "natural.damping=0.3"]
    configuration, notes = resolve("HalfCheetah-v5", overrides=given)
    assert configuration.algorithm_arguments()["natural"].damping == 0.3
    assert "remembers: critic.damping of" in notes[0]


def test_what_belongs_to_no_family_has_the_constructor_as_it_is():
    """But for a trunk, which the constructor shares as Stable-Baselines3 does."""
    configuration, _ = resolve("tests.helpers.toy_envs:Toy-v0")
    said = loader._load_family("defaults")["default"].keys() & configuration.algorithm_arguments().keys()
    assert said == {"policy_kwargs"}
    with contextlib.closing(build_environment(configuration)) as env:
        model, plain = build_model(configuration, env), ACKTR("MlpPolicy", env, seed=0)
    for name in configuration.algorithm_arguments().keys() - said - {"stats_window_size"}:
        assert getattr(model, name) == getattr(plain, name), name


def test_a_preset_that_is_gone_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"^The preset 'other' is gone: use --preset defaults"):
        resolve("CartPole-v1", preset="other")


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("n_steps=7", "n_steps", 7),
        ("n_timesteps=1e6", "n_timesteps", 1_000_000),
        ("gamma=0.9", "gamma", 0.9),
        ("natural.damping=1e-3", "natural.damping", 0.001),
        ("target_kl=lin_2e-3", "target_kl", "lin_2e-3"),
        ("seed=3", "seed", 3),
        ("policy_kwargs={log_std_init: -1}", "policy_kwargs", {"log_std_init": -1}),
        ("policy_kwargs.net_arch.pi=[8, 8]", "policy_kwargs", {"net_arch": {"pi": [8, 8]}}),
        ("env_kwargs.gravity=9", "env_kwargs", {"gravity": 9}),
        ("policy_kwargs.activation_fn=ELU", "policy_kwargs", {"activation_fn": "ELU"}),
    ],
)
def test_set_reads_yaml_values(override, name, value):
    configuration, _ = resolve("CartPole-v1", overrides=[override])
    assert operator.attrgetter(name)(configuration) == value


@pytest.mark.parametrize(
    ("overrides", "norm_obs", "norm_reward"),
    [
        ([], True, True),
        (["normalize=false"], False, False),
        (["normalize.norm_reward=false"], True, False),
        (["normalize=false", "normalize.norm_obs=true"], True, False),
        (["normalize={norm_obs: false}"], False, True),
    ],
)
def test_normalize_is_a_switch_and_a_mapping(overrides, norm_obs, norm_reward):
    configuration, _ = resolve("Pendulum-v1", overrides=["normalize=true", *overrides])
    assert configuration.normalize.norm_obs is norm_obs
    assert configuration.normalize.norm_reward is norm_reward


def test_options_win_and_none_is_left_out():
    configuration, _ = resolve(
        "CartPole-v1", overrides=["n_envs=3", "seed=5"], options={"n_envs": 4, "seed": None}
    )
    assert (configuration.n_envs, configuration.seed) == (4, 5)


def test_configuration_survives_yaml():
    configuration, _ = resolve("Pendulum-v1", overrides=["policy_kwargs.activation_fn=ELU"])
    text = yaml.safe_dump(configuration.model_dump(mode="json"))
    assert validate(yaml.safe_load(text)) == configuration


def test_preset_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("default: {n_timesteps: 9, n_steps: 3}\nCartPole-v1: {n_steps: 4}\n")
    configuration, _ = resolve("CartPole-v1", preset=str(path))
    assert (configuration.n_timesteps, configuration.n_steps) == (9, 4)
    configuration, _ = resolve("Acrobot-v1", preset=str(path))
    assert configuration.n_steps == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "default: {n_step: 3}",
            "'n_step' in .*mine.yaml, section default: did you mean 'n_steps'",
        ),
        ("n_steps: 3", "must hold sections"),
        ("- 1", "must hold sections"),
        ("default: {", "not valid YAML"),
        ("default: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("default: {n_steps: 3}", "'n_timesteps' is missing"),
    ],
)
def test_bad_preset_file(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        resolve("CartPole-v1", preset=str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n_step=3", "'n_step' in --set: did you mean 'n_steps'"),
        ("xyzzy=3", "'xyzzy' in --set: choose from"),
        ("env_id=Foo-v0", "'env_id' in --set"),
        ("n_steps", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("policy_kwargs..a=3", "not of the form key=value"),
        ("n_steps.a=3", "n_steps is 64, not a mapping"),
        ("natural.damping=high", "natural.damping = 'high' is not valid"),
        ("n_steps=2.5", "n_steps = 2.5 is not valid"),
        ("n_envs=0", "n_envs = 0 is not valid: input should be greater than 0"),
        ("n_timesteps=-5", "n_timesteps = -5 is not valid"),
        ("seed=-1", "seed = -1 is not valid"),
        ("normalize.clip_obs=-1", "normalize.clip_obs = -1 is not valid"),
        ("normalize.norm_rewards=true", "'norm_rewards' in normalize: did you mean 'norm_reward'"),
        ("policy=MlpPolicies", "no policy 'MlpPolicies': choose from auto, CnnGruPolicy, CnnLstmPolicy"),
        ("policy_kwargs.net_arc=[8]", "'net_arc' in policy_kwargs: did you mean 'net_arch'"),
        ("policy_kwargs.activation_fn=Tahn", "'Tahn' for activation_fn: did you mean 'Tanh'"),
        ("policy_kwargs.activation_fn=os.system", "Unknown class 'os.system'"),
        ("backend=sync", "'sync' does not exist: choose from auto, gymnasium, subproc, envpool, ale"),
        ("n_steps={", "not valid YAML"),
    ],
)
def test_bad_override_gets_one_sentence(override, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        resolve("CartPole-v1", overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("mujocco", "no preset 'mujocco': use mujoco"),
        ("Pendulum-v0", "use Pendulum-v1"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_unknown_preset(preset, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve("CartPole-v1", preset=preset)


def test_class_names_become_classes_at_any_depth():
    resolved = resolve_classes(
        {
            "activation_fn": "torch.nn.ReLU",
            "features_extractor_class": "NatureCNN",
            "features_extractor_kwargs": {"activation_fn": "Tanh", "features_dim": 4},
            "optimizer_class": "SGD",
        }
    )
    assert resolved == {
        "activation_fn": nn.ReLU,
        "features_extractor_class": NatureCNN,
        "features_extractor_kwargs": {"activation_fn": nn.Tanh, "features_dim": 4},
        # ACKTR refuses it by name.
        "optimizer_class": "SGD",
    }
    assert resolve_classes(None) == {}


@pytest.mark.parametrize("text", ["0x_", "0b_", "9" * 5000, "[" * 3000])
def test_a_number_that_is_none_is_named(text):
    with pytest.raises(ConfigurationError, match=r"--set .* is not valid YAML") as caught:
        resolve("CartPole-v1", overrides=[f"n_steps={text}"])
    assert "\n" not in str(caught.value)
