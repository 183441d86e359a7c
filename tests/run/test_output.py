"""What cannot be written is dropped, whoever prints it, and nothing else changes."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from acktr.files.streams import Dropping, dropping, occupy_standard_descriptors
from tests.helpers.command_line import Broken


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed")])
def test_nothing_that_prints_fails(monkeypatch, error):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(error))
    with dropping():
        print("x", flush=True)
        print("x", file=sys.stderr)
        sys.stderr.writelines(["x"])
        Console(stderr=True).print("x")
        assert isinstance(sys.stdout, Dropping)
    assert isinstance(sys.stdout, Broken)


def test_what_can_be_written_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with dropping():
        print("1 ± 2")
        assert sys.stdout.encoding == "ascii"
    assert sys.stdout.buffer.getvalue() == b"1 ? 2\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("how", ["full", "pipe", "closed"])
def test_python_ends_as_it_would(tmp_path, how):
    code = (
        "import sys; from acktr.files.streams import *; occupy_standard_descriptors()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "with dropping():\n print('x'); print('x', file=sys.stderr)\n"
        "import os; os.write(1, b'x') if len(sys.argv) > 1 else None\n"
        "sys.exit(3)"
    )
    command = [sys.executable, "-c", code]
    # With what is left to be written at the end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if how == "pipe":
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as out:
            ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=60, env=env)
    elif how == "full":
        with open("/dev/full", "w") as out:
            ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=60, env=env)
    else:
        line = '"$0" -c "$1" x >&-'
        ended = subprocess.run(
            ["sh", "-c", line, *command[::2]], stderr=subprocess.PIPE, timeout=60, env=env
        )
    assert (ended.returncode, ended.stderr) == (3, b"x\n")
    assert (tmp_path / "file").read_bytes() == b""


def test_open_descriptors_stay_as_they_are():
    before = [os.fstat(descriptor) for descriptor in range(3)]
    occupy_standard_descriptors()
    assert [os.fstat(descriptor) for descriptor in range(3)] == before
