"""The page of a comparison."""

import re

import numpy as np
import pytest

from acktr.compare.curve import COLUMNS as CURVE
from acktr.compare.report import write_report
from acktr.compare.store import COLUMNS
from acktr.errors import ConfigurationError

pytest.importorskip("bokeh")

NAN = float("nan")


def curve(*returns):
    steps = np.arange(1.0, len(returns) + 1)
    return dict(zip(CURVE, (steps, steps / 2, steps / 2, np.array(returns)), strict=True))


def row(label, **values):
    known = {"steps": "3", "seconds": "1.5", "fps": "2", "diverged": "no", "label": label, "seed": "0"}
    return {**dict.fromkeys(COLUMNS, ""), **known, **values}


def test_algorithms_without_a_run_directory(tmp_path):
    groups = {"acktr": [curve(NAN, 1.0, 2.0), curve(0.0, 2.0, 4.0)], "a2c": [curve(NAN, NAN, 1.0)]}
    rows = [row("acktr"), row("acktr", seed="1", diverged="yes"), row("a2c", last_100_return="1.25")]
    runs = {"acktr, seed 0": tmp_path / "nowhere"}
    out = write_report("<b>Toy", rows, groups, runs, tmp_path / "report.html")
    text = out.read_text(encoding="utf-8")
    assert "<h1>acktr, a2c on &lt;b&gt;Toy</h1>" in text
    assert len(re.findall("<td>diverged</td>", text)) == 1
    assert "<td>1.2</td>" in text
    assert text.count("<noscript><img") == 2
    assert "Inside ACKTR" not in text
    assert "<h2>Health</h2>" not in text
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_report("Toy", rows, groups, {}, tmp_path / "file" / "report.html")
