"""The scheduler's decisions as readable transcripts; `UPDATE_TRANSCRIPTS=1` writes what happens now."""

import os
from pathlib import Path

import pytest

from fakes.scheduler_transcript import play

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_scheduler_decides_as_written(path: Path) -> None:
    expected = path.read_text()
    actual = play(expected)
    if os.environ.get("UPDATE_TRANSCRIPTS"):
        path.write_text(actual)
    else:
        assert actual == expected


def test_there_are_transcripts() -> None:
    assert TRANSCRIPTS
