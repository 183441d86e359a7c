"""Files and texts of others: nothing waits, nothing grows, nothing is obeyed (faults 31 to 33)."""

import os
import socket
import time

import pytest

from acktr.errors import CheckpointError, ConfigurationError, WorkerError, printable
from acktr.files.reading import MAX_TEXT, parse_yaml, read_plain, read_yaml
from acktr.presets import resolve
from acktr.run.directory import Run

# Plain files --------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**33)


def listening(path):
    own = socket.socket(socket.AF_UNIX)
    own.bind(str(path))
    own.close()


def device(path):
    path.symlink_to("/dev/zero")


STRANGE = {"pipe": pipe, "sparse": sparse, "socket": listening, "device": device, "directory": os.mkdir}
strange = pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)


@strange
def test_what_is_no_plain_file_is_not_waited_for(tmp_path, make):
    path = tmp_path / "a.yaml"
    make(path)
    with pytest.raises(
        OSError, match=r"no plain file|more than 100 bytes|No such device|Is a directory"
    ):
        read_plain(path, 100)
    with pytest.raises(ConfigurationError, match=r"a\.yaml cannot be read \("):
        resolve("CartPole-v1", preset=str(path))


def test_a_plain_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(path, 4)
    # What has no size and no end either.
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain("/proc/self/environ", 4)


@pytest.mark.parametrize("content", ["sparse", "a: &a [*a]\n", "env_id: 0x_\n", "- 1\n", "\x1b[2J: ["])
def test_the_configuration_of_a_run(tmp_path, content):
    path = tmp_path / "config.yaml"
    sparse(path) if content == "sparse" else path.write_text(content)
    with pytest.raises(
        CheckpointError, match=r"config\.yaml (cannot be read|is not the conf)"
    ) as caught:
        Run.open(tmp_path).read_configuration()
    assert "\x1b" not in str(caught.value)


def test_a_name_that_no_file_can_have():
    with pytest.raises(ConfigurationError, match="There is no preset"):
        resolve("CartPole-v1", preset="a" * 5000)


# YAML ---------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
CHAIN = "a0: &a0 []\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
HOSTILE = {
    "laughs": LAUGHS,
    "laughing keys": LAUGHS.replace("[", "{k: [").replace("]", "]}"),
    "long texts": f"a: &a {'x' * 50_000}\nb: [{','.join(['*a'] * 1000)}]\n",
    "a chain of aliases": CHAIN,
    "itself": "a: &a [*a]\n",
    "itself by way of a key": "a: &a {b: {c: *a}}\n",
    "brackets": "a: " + "[" * 3000 + "]" * 3000,
    "open brackets": "a: " + "[" * 3000,
    "braces": "{a: " * 3000,
    "dashes": "- " * 3000 + "a",
    "digits": f"a: {'9' * 5000}",
    "bits": f"a: {2**63}",
    "no number": "a: 0x_",
    "no binary number": "a: 0b_",
    "no float": "a: !!float x",
    "code": "a: !!python/object/apply:os.system [ls]",
    "bytes": "a: !!binary aGVsbG8=",
    "a time": "a: !!timestamp 2001-01-01",
    "a set": "a: !!set {b}",
    "no key": "? [a, [b]]\n: c\n",
    "a tag": "a: !mine b",
    "a control character": "a: \x07",
    "too long": "#" * (MAX_TEXT + 1),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused(tmp_path, text):
    began = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        parse_yaml(text)
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        resolve("CartPole-v1", preset=str(path))
    assert len(str(caught.value)) < 9000
    assert time.process_time() - began < 60  # and not until the end of the world


def test_what_configurations_hold_is_read():
    text = "a: &a {b: 1e-3, c: [1, .inf, ~, yes], d: 2001-99-99}\n"
    text += f"e: {{<<: *a, b: 5}}\nf: {-(2**63)}\n"
    plain = {"b": 1e-3, "c": [1, float("inf"), None, True], "d": "2001-99-99"}
    assert parse_yaml(text) == {"a": plain, "e": {**plain, "b": 5}, "f": -(2**63)}


def test_many_aliases_of_small_things_are_fine(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("default: &d {n_envs: 2}\n" + "".join(f"env-{i}: *d\n" for i in range(2000)))
    assert len(read_yaml(path)) == 2001


@pytest.mark.parametrize(
    "text",
    [
        *("1: {n_envs: 2}", "default: {1: 2}", "default: {~: 2}", "default: {n_steps: .nan}"),
        *(
            "default: {n_envs: {1: 2}}",
            "default: {env_kwargs: {1: 2}}",
            "default: {policy_kwargs: {1: 2}}",
        ),
        *("default: {worker_timeout: .nan}", "default: {normalize: {1: 2}}"),
        *("default: {n_steps: 2001-99-99}", "default: {n_envs: 1000000000}", "default: [a]", "~"),
        *("default: {n_timesteps: 9223372036854775807}", "default: {frame_stack: 4000000000}"),
    ],
)
def test_odd_settings_are_named(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    options = {} if "n_timesteps" in text else {"n_timesteps": 100}
    with pytest.raises(ConfigurationError, match=r"^(?!.*is missing)"):
        resolve("CartPole-v1", preset=str(path), options=options)


# Terminals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CheckpointError, ConfigurationError, WorkerError])
@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\x07", "\x9b2J", "‮", "⁦", "\ud800", "\0", "\x7f"])
def test_a_terminal_obeys_nothing_in_an_error(kind, sign):
    text = str(kind(f"a{sign}b\n\tc"))
    assert sign not in text
    assert text.replace("\n", "").replace("\t", "").isprintable()
    assert (text[0], text[-1]) == ("a", "c")
    assert "\n\t" in text


def test_a_message_has_an_end():
    text = str(CheckpointError("a" * 10**6 + "end"))
    assert len(text) < 9000
    assert text.endswith("end")
    assert printable("ab ± […] 日本") == "ab ± […] 日本"
