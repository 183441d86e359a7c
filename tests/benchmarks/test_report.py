"""No number of the pages of results is typed by hand."""

import pytest

from benchmarks.report import PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_page_says_what_was_measured(path):
    text = path.read_text(encoding="utf-8")
    assert PAGES[path](text) == text, "run python -m benchmarks.report"
