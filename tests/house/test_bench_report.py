"""The page of benchmarks is written section by section and keeps all that it does not replace."""

import pytest

from bench.report import Report, Row, render, replace_section

REPORT = Report(name="pull", title="Pull of blocks", rows=[Row("64 MiB", [2.0, 1.0, 4.0], "GB/s", "at least 1")])


def test_a_section_tells_command_machine_median_and_range():
    section = render(REPORT)
    assert section.startswith("### Pull of blocks\n\n`make bench BENCH=pull`")
    assert "| 64 MiB | 2 GB/s | 1 to 4 | 3 | at least 1 |" in section
    assert "cores, Python" in section


def test_a_section_is_added_once_and_replaced_after_that():
    page = replace_section("# Benchmarks\n", "pull", "first\n")
    page = replace_section(page, "step", "other\n")
    page = replace_section(page, "pull", "second \\1\n")
    assert "first" not in page
    sections = ["<!-- bench:pull -->\nsecond \\1\n<!-- /bench -->\n", "<!-- bench:step -->\nother\n<!-- /bench -->\n"]
    assert page == "\n".join(["# Benchmarks\n", *sections])


def test_a_row_without_a_run_is_an_error():
    with pytest.raises(ValueError, match="median"):
        render(Report(name="x", title="x", rows=[Row("x", [], "s")]))
