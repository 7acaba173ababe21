"""The documents say what the programs do: fields, rules, commands, options, examples."""

from pathlib import Path

import pytest
import typer.main

from triptych.main import app
from triptych_operator.settings import read_settings
from triptych_operator.spec import load_file
from triptych_operator.spec.reference import field_table
from triptych_operator.spec.rules import RULES

ROOT = Path(__file__).parents[2]
LLMSERVICE = (ROOT / "docs" / "llmservice.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_field_table_is_the_one_made_from_the_schema() -> None:
    written = LLMSERVICE.split("<!-- fields: made by triptych_operator.spec.reference -->\n")[1]
    assert written.split("\n<!-- /fields -->")[0] == field_table()


def test_every_rule_is_documented_with_its_message() -> None:
    for rule in RULES:
        assert f"| `{rule.name}` | `{rule.scope or 'the object'}` | {rule.message} |" in LLMSERVICE


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_and_option_is_documented(command: str) -> None:
    assert f"`triptych {command}" in CLI
    section = CLI.split(f"\n## {command}\n")[1].split("\n## ")[0] if f"\n## {command}\n" in CLI else CLI
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert f"`{max(parameter.opts, key=len)}`" in section


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_sound_file(path: Path) -> None:
    assert load_file(path).service.ignored_fields == ()


def test_the_operator_program_reads_its_flags() -> None:
    settings = read_settings(["-f", "x.yaml", "--port", "0", "--state-dir", "state", "--sim"])
    assert (settings.platform, settings.port, settings.sim) == ("local", 0, True)
