"""The page about runs: what it shows, that a browser draws it, and that nothing of a run acts there."""

import base64
import json
import os
import re
import shutil
import warnings
import zipfile
from unittest import mock

import numpy as np
import pytest
import yaml

from acktr.errors import CheckpointError, ConfigurationError
from acktr.learner.timing import ACTIVITIES
from acktr.run.directory import EPISODE_COLUMNS, Run
from acktr.run.panels import POINTS, line, panels_of, seconds_of
from acktr.run.report import films_of, report, short_names, times_of
from tests.helpers.browser import CHROMIUM, chromium, look

pytest.importorskip("bokeh")

THEFT = "document.title = 'stolen'"
EVIL = f'</script><script>{THEFT}</script><img src=x onerror="{THEFT}">$$x$$'
ADVISE = "acktr.run.report.advise_run"
FIVE_MB = 5_000_000
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as port:
        yield port


def change(path, **settings):
    content = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**content, **settings}))


def made(runs, out):
    assert report([Run(path) for path in runs], out) == out
    text = out.read_text(encoding="utf-8")
    assert len(text) < FIVE_MB
    return text


def panel(run, title):
    return next(p for p in panels_of([Run(run)]) if p.title == title)


def test_a_page_has_all_in_itself(copy, tmp_path):
    (copy / "episode.mp4").write_bytes(b"film")
    text = made([copy], tmp_path / "page.html")
    assert "ACKTR on tests.helpers.toy_envs:Toy-v0" in text
    assert base64.b64encode(b"film").decode() in text
    assert "Of " in text  # of so few episodes nothing can be told
    titles = [p.title for p in panels_of([Run(copy)])]
    assert titles[:4] == [
        "Return of an episode",
        "KL against its target",
        "Explained variance",
        "Entropy",
    ]
    assert all(f"<h3>{title}</h3>" in text for title in titles)
    assert text.count("<noscript><img") == len(titles)
    assert "natural.damping" in text
    assert "stable-baselines3" in text
    # Nothing is fetched.
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["']?(?!data:)[\w/.]+""", text.split("<script nonce")[0]
    )
    assert "default-src 'none'" in text


def test_runs_side_by_side(copy, finished, tmp_path):
    change(copy, seed=7)
    text = made([copy, finished], tmp_path / "page.html")
    assert "2 runs" in text
    names = short_names([copy, finished])
    assert len(set(names)) == 2
    assert all(f"</span>{name}</li>" in text for name in names)
    marked = re.findall(r'class="marked"><th scope="row">([\w.]+)</th>', text)
    assert marked == ["seed"]


def test_advice_is_shown(copy, tmp_path):
    with mock.patch(ADVISE, return_value=["It is ill.", "Try <another>."]):
        text = made([copy], tmp_path / "page.html")
    assert '<div class="note ill"><p>It is ill. Try &lt;another&gt;.</p>' in text


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    other = shutil.copytree(finished, folder / "other")
    change(other, seed=7)
    made([finished, other], folder / "page.html")
    return folder / "page.html"


@in_a_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_it(browser, page, finished, tmp_path, width, dark):
    ask = "[document.documentElement.dataset.drawn, document.documentElement.scrollWidth]"
    picture = tmp_path / "page.png"
    (drawn, shown), errors = look(browser, page, picture, width=width, dark=dark, ask=ask)
    assert errors == []
    assert int(drawn) == len(panels_of([Run(finished)]))
    assert shown <= width
    assert picture.stat().st_size > 10_000


@in_a_browser
def test_a_browser_without_scripts_shows_pictures(browser, page, finished):
    ask = "[...document.images].filter(x => x.complete && x.naturalWidth > 0).length"
    shown, errors = look(browser, page, scripts=False, ask=ask)
    assert errors == []
    assert shown == len(panels_of([Run(finished)]))


@in_a_browser
def test_nothing_of_a_run_acts(browser, finished, tmp_path):
    evil = tmp_path / EVIL.replace("/", "\\")
    shutil.copytree(finished, evil)
    shutil.copytree(finished, tmp_path / "other")
    change(evil, env_id=EVIL, preset=EVIL, **{EVIL: EVIL})
    (evil / "versions.json").write_text(json.dumps({EVIL: EVIL, "python": [EVIL]}))
    (evil / "result.json").write_text(json.dumps({"steps": EVIL, "seconds": [], "evaluation": EVIL}))
    (evil / "episode.mp4").write_text(EVIL)
    page = tmp_path / "page.html"
    text = made([evil, tmp_path / "other"], page)
    assert "<img src=x" not in text
    ask = "[document.title, document.scripts.length, document.images.length]"
    (title, scripts, images), errors = look(browser, page, ask=ask)
    assert title.startswith("ACKTR on </script>")
    assert (scripts, images) == (3, 0)
    assert errors == []


@pytest.mark.parametrize("damage", ["pickle", "large", "text", "pipe", "other"])
def test_evaluations_that_are_none_are_left_out(copy, damage, tmp_path):
    path = copy / "evaluations.npz"
    path.unlink()
    if damage == "pickle":
        np.savez(path, results=np.array([object()]))
    elif damage == "large":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.npy", bytes(2**25))
    elif damage == "text":
        path.write_text(EVIL)
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        np.savez(path, others=np.zeros(3))
    assert panel(copy, "Returns at the end").note == "Share of the last 100 training episodes."


def test_films_are_small_files(copy, finished, tmp_path):
    (copy / "episode.mp4").write_bytes(bytes(1_500_000))
    other = shutil.copytree(copy, tmp_path / "other")
    assert [film.name for film in films_of([Run(copy), Run(other)], ["a", "b"])] == ["a"]
    (copy / "episode.mp4").unlink()
    os.mkfifo(copy / "episode.mp4")
    assert films_of([Run(copy), Run(finished)], ["a", "b"]) == []


def test_the_band_is_one_standard_deviation(copy):
    rows = [(20, 1.0), (20, 3.0), (400, 5.0), (400, 5.0)]
    table = [",".join(EPISODE_COLUMNS), *(f"{steps},{value},10,1.0,0" for steps, value in rows)]
    (copy / "episodes.csv").write_text("\n".join(table) + "\n")
    shown = panel(copy, "Return of an episode").lines[0]
    assert shown.x == pytest.approx([20, 400])
    assert shown.y == pytest.approx([2.0, 5.0])
    assert shown.high - shown.y == pytest.approx([1.0, 0.0])
    assert shown.y - shown.low == pytest.approx([1.0, 0.0])


def test_where_the_time_goes(finished, copy, tmp_path):
    seconds = seconds_of(Run(finished))
    assert list(seconds) == list(ACTIVITIES)
    assert all(value > 0 for value in seconds.values())
    assert "<h2>Where the time goes</h2>" in made([finished], tmp_path / "page.html")
    (copy / "progress.csv").write_text(
        ",".join(f"time/{name}" for name in ACTIVITIES) + "\n1,2,3,4\n,,,\n1,0,1,nan\n1,2,3,4\n"
    )
    assert seconds_of(Run(copy)) == {"collecting": 2, "critic": 4, "actor": 6, "rest": 8}
    assert times_of([Run(copy)], ["a"]).rows == [["a", "20 s", "10%", "20%", "30%", "40%"]]
    (copy / "progress.csv").write_text("time/total_timesteps\n1\n")  # from before
    assert times_of([Run(copy)], ["a"]) is None


GARBAGE = bytes(range(128, 256)) + b"\n"


@pytest.mark.parametrize("name", ["episodes.csv", "progress.csv", "evaluations.csv"])
def test_what_cannot_be_read_of_a_table_is_told_and_the_rest_drawn(copy, finished, name, tmp_path):
    header, *rows = (finished / name).read_bytes().splitlines(keepends=True)
    half = rows[-1][: rows[-1].rindex(b",")]
    (copy / name).write_bytes(b"".join([header, rows[0], GARBAGE, *rows[1:], half]))
    text = made([copy], tmp_path / "page.html")
    told = f"{name}: 2 of {len(rows) + 2} rows cannot be read and are left out."
    assert f'<p class="missing">{told}</p>' in text

    def drawn(run):
        return [
            (p.title, [x.y.tolist() for x in p.lines]) for p in panels_of([Run(run, leave_out=True)])
        ]

    assert drawn(copy) == drawn(finished)
    assert f"{copy.name}, {name}: 2 of" in made([copy, finished], tmp_path / "two.html")


def test_a_table_without_its_first_row_is_told(copy, finished, tmp_path):
    (copy / "progress.csv").write_bytes(GARBAGE * 3)
    told = "progress.csv is left out: its first row does not name time/total_timesteps."
    assert told in made([copy], tmp_path / "page.html")
    (copy / "progress.csv").unlink()
    assert "left out" not in made([copy], tmp_path / "page.html")
    (copy / "episodes.csv").write_bytes(GARBAGE * 3)
    with pytest.raises(CheckpointError, match=r"episodes\.csv is damaged"):
        report([Run(copy)], tmp_path / "none.html")
    header = (finished / "episodes.csv").read_bytes().splitlines(keepends=True)[0]
    (copy / "episodes.csv").write_bytes(header + GARBAGE * 3)
    lost = r"has not finished an episode that can be read \(episodes\.csv: 3 of 3 rows"
    with pytest.raises(ConfigurationError, match=lost):
        report([Run(copy)], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("name", ["result.json", "versions.json"])
def test_figures_that_are_none_are_left_out(copy, name, tmp_path):
    for data in (b"[" * 100_000, GARBAGE, b"null", b'{"steps": [], "evaluation": 3}'):
        (copy / name).write_bytes(data)
        made([copy], tmp_path / "page.html")


def test_speed_is_that_between_episodes(copy):
    steps = np.arange(100, 2100, 100)
    seconds = np.where(steps <= 1000, steps / 100, 10 + (steps - 1000) / 50)
    rows = (f"{a},1,100,{b},0" for a, b in zip(steps, seconds, strict=True))
    (copy / "episodes.csv").write_text("\n".join([",".join(EPISODE_COLUMNS), *rows]) + "\n")
    (shown,) = panel(copy, "Speed").lines
    assert (shown.y[0], shown.y[-1]) == pytest.approx((100.0, 50.0))


def test_shares_add_up_to_one(finished):
    (shown,) = panel(finished, "Returns at the end").lines
    assert shown.y.sum() == pytest.approx(1.0)


def test_what_is_not_finite_is_left_out_and_long_lines_are_thinned():
    x, y = np.arange(4.0), np.array([1.0, np.nan, np.inf, 1e300])
    (shown,) = line(0, x, y)
    assert shown.x.tolist() == [0.0]
    assert line(0, x[1:], y[1:]) == []
    (shown,) = line(0, np.arange(1e4), np.arange(1e4))
    assert len(shown.x) == POINTS
    assert (shown.x[0], shown.x[-1]) == (0, 9999)


@pytest.mark.parametrize(
    "results", [np.array(3.0), np.array([[1e25, 1.0000001e25]]), np.full((2, 3), 7.0)]
)
def test_odd_evaluations_are_drawn_or_left_out(copy, results, tmp_path):
    np.savez(copy / "evaluations.npz", results=results)
    made([copy], tmp_path / "page.html")


def test_an_episode_without_a_step_is_left_out(copy, tmp_path):
    table = copy / "episodes.csv"
    first, second, *rest = table.read_text().splitlines()
    table.write_text("\n".join([first, ",".join(["nan", *second.split(",")[1:]]), *rest]) + "\n")
    made([copy], tmp_path / "page.html")


def test_odd_numbers_in_tables_are_drawn(copy, tmp_path):
    header, *rows = (copy / "progress.csv").read_text().splitlines()
    odd = [",".join(value for _ in header.split(",")) for value in ("nan", "inf", "-1e308", "x", "")]
    (copy / "progress.csv").write_text("\n".join([header, *odd, *rows, *odd]) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made([copy], tmp_path / "page.html")


def test_names_are_as_short_as_tells_them_apart(tmp_path):
    assert short_names([tmp_path / "a" / "run"]) == ["run"]
    assert short_names([tmp_path / "a" / "run", tmp_path / "b<$" / "run"]) == ["a/run", "b··/run"]


def test_what_cannot_be_reported_is_refused(copy, tmp_path):
    run, out = Run(copy), tmp_path / "page.html"
    with pytest.raises(ConfigurationError, match=r"page\.txt is not an \.html file"):
        report([run], tmp_path / "page.txt")
    with (
        mock.patch("acktr.run.report.is_installed", return_value=False),
        pytest.raises(ConfigurationError, match=r'needs bokeh.*pip install "acktr\[report\]"'),
    ):
        report([run], out)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        report([run], tmp_path / "file" / "page.html")
    (copy / "episodes.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"to report: .*run has not finished an episode"):
        report([run], out)
    assert not out.exists()
