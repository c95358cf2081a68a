from pathlib import Path

from sparseoccvla.metrics.definitions import markdown
from sparseoccvla.metrics.results import NO_MODEL, read_results

ROOT = Path(__file__).parents[2]
START = "<!-- made by sparseoccvla.metrics.definitions.markdown; a test compares -->\n"
END = "<!-- tables end -->"


def test_the_page_has_the_tables_that_reports_quote() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    between = page.split(START)[1].split(END)[0]
    assert between == markdown(), "docs/metrics.md is not what definitions.markdown() makes"


def test_the_committed_speeds_keep_the_targets_and_can_be_read() -> None:
    results = read_results(ROOT / "benchmarks" / "metrics.json")
    speed = results.figures["speed"]
    assert results.model_id == NO_MODEL
    assert speed["miou_pairs_per_s"] >= 100
    assert speed["rayiou_8_origins_pairs_per_s"] >= 5
    assert speed["cider_50000_answers_s"] < 60
