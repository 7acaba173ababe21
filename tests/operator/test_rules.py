"""The table of rules itself: names, messages, and that each rule has a file that it alone refuses."""

from pathlib import Path

import pytest

from triptych_operator.spec.rules import RULES, Rule
from triptych_operator.spec.schema import load_schema, with_defaults

FILES = Path(__file__).parent / "files"
NAMES_OF_THE_CRD = [
    *("sizing", "pair", "split-auto", "pd-min", "encode", "mixed", "owner", "range", "bounds", "ceiling", "floors"),
    *("to-zero", "surge", "fetch", "cache", "gateway", "tls", "overrides", "overrides", "name"),
]


def test_the_table_has_every_rule_of_the_crd_in_its_order() -> None:
    assert [rule.name for rule in RULES] == NAMES_OF_THE_CRD


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.scope or 'root'}")
def test_each_rule_has_a_bad_file_that_shows_its_message(rule: Rule) -> None:
    assert rule.message in (FILES / f"{rule.name}.out.txt").read_text()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.scope or 'root'}")
def test_messages_are_one_sentence_that_says_what_to_write(rule: Rule) -> None:
    assert rule.message.endswith(".")
    assert "\n" not in rule.message


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.scope or 'root'}")
def test_each_rule_reads_fields_of_the_schema(rule: Rule) -> None:
    scope = load_schema()
    for part in filter(None, rule.scope.split(".")):
        scope = scope["properties"][part]
    for read in rule.reads:
        node = scope
        for part in read.split("."):
            if node.get("x-kubernetes-preserve-unknown-fields"):
                break
            node = node["properties"][part]


def test_fields_whose_presence_means_something_get_no_default() -> None:
    spec = with_defaults({"spec": {"model": {"source": "demo://"}}})["spec"]
    kept_absent = {"replicas", "topology", "prefill", "decode", "encode", "planner", "scaling"}
    assert not kept_absent & set(spec)
    assert set(spec) == {
        *("model", "engine", "router", "slo", "rollout", "recovery", "offline", "kvCache", "drainSeconds", "suspend"),
    }
    assert spec["rollout"]["maxSurge"] == 1


def test_a_nested_default_applies_only_inside_a_present_parent() -> None:
    spec = with_defaults({"spec": {"model": {"source": "demo://"}, "planner": {}}})["spec"]
    assert spec["planner"] == {
        "mode": "Advisory",
        "manages": ["Roles"],
        "minPrefill": 1,
        "minDecode": 1,
        "maxConcurrentFlips": 1,
        "maxFlipsPerCooldown": 2,
        "cooldownSeconds": 60,
        "predictor": "Trend",
    }
