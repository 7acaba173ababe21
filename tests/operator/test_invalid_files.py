"""Bad files: every one gets all of its faults in one message, with lines; its mended twin is accepted.

`REWRITE_GOLDEN=1 pytest tests/operator/test_invalid_files.py` writes the golden messages anew.
"""

import os
from pathlib import Path

import pytest

from triptych_operator.spec import BadSpec, load_file, load_text

FILES = Path(__file__).parent / "files"
NAMES = sorted(path.name.removesuffix(".in.yaml") for path in FILES.glob("*.in.yaml"))
MINIMAL = (
    "apiVersion: triptych.dev/v1alpha1\nkind: LLMService\nmetadata: {name: demo}\nspec:\n  model: {source: 'demo://'}\n"
)


def message(name: str) -> str:
    with pytest.raises(BadSpec) as caught:
        load_text((FILES / f"{name}.in.yaml").read_text(), source=f"{name}.yaml")
    return f"{caught.value}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_file_gets_the_golden_message(name: str) -> None:
    golden = FILES / f"{name}.out.txt"
    if os.environ.get("REWRITE_GOLDEN"):
        golden.write_text(message(name))
    assert message(name) == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_mended_twin_is_accepted(name: str) -> None:
    assert load_file(FILES / f"{name}.twin.yaml").service.name


def test_there_are_more_than_twenty_of_them() -> None:
    assert len(NAMES) > 20


def test_faults_are_sorted_by_line() -> None:
    with pytest.raises(BadSpec) as caught:
        load_file(FILES / "everything-at-once.in.yaml")
    lines = [fault.line for fault in caught.value.faults]
    assert lines == sorted(lines)
    assert len(set(lines)) > 4


def test_a_file_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="No such file or directory; give the path of an LLMService file"):
        load_file(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"apiVersion: x\nkind: \xff\n")
    with pytest.raises(BadSpec, match=r"line 2.*not UTF-8"):
        load_file(path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(BadSpec, match="larger than"):
        load_file(path)


def test_nested_aliases_do_not_blow_up() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(BadSpec, match="holds more than"):
        load_text("\n".join(levels))


def test_deep_nesting_does_not_blow_up() -> None:
    with pytest.raises(BadSpec):
        load_text("[" * 5000)


def test_a_null_counts_as_absent() -> None:
    service = load_text(MINIMAL + "  slo: null\n  prefill: null\n  replicas: ~\n").service
    assert service.spec.prefill is None
    assert service.spec.replicas is None
