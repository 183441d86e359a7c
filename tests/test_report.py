"""No number of the results page is typed by hand."""

from benchmarks.report import PAGE, page


def test_the_page_says_what_the_csv_says():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run python -m benchmarks.report"
