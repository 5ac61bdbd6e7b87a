"""The endpoint's settings: strict, and told in words."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

import pytest

from dfmvr.config import SettingsError
from serve.settings import ServeSettings, parse_settings

WRONG: list[tuple[str, Any, str]] = [
    *(("device", "tpu", "one of auto, cpu, cuda"), ("landmarks", "off", "one of auto, dlib")),
    *(("keys", "off", "one of auto, required, none"), ("keys", False, "one of auto, required, none")),
    *(("min_replicas", 0, "at least 1"), ("max_replicas", 0, r"at least min_replicas \(1\)")),
    *(
        ("target_ongoing_requests", 0, "more than 0"),
        ("cpus", 0, "more than 0"),
        ("cpus", math.inf, "more than 0"),
    ),
    *(("gpus", -0.5, "at least 0"), ("gpus", math.nan, "at least 0"), ("batch_wait_ms", -1, "at least 0")),
    *(("max_batch_size", 0, "at least 1"), ("threads", 0, "at least 1"), ("queue", 0, "at least 1")),
    *(("queue", 1.5, "Integer"), ("queue", "many", "Integer"), ("queue", None, "None")),
    *(("time_limit_s", 0, "more than 0"), ("time_limit_s", math.nan, "more than 0")),
    *(("time_limit_s", "soon", "Float"), ("body_timeout_s", -1, "more than 0")),
    *(("max_body_mb", math.inf, "more than 0"), ("max_megapixels", 0, "more than 0")),
    *(("max_batch_items", 0, "at least 1"), ("idempotency_minutes", 0, "more than 0")),
    *(("idempotency_mb", 0, "more than 0"), ("requests_per_minute", -1, "at least 0")),
    *(("model_hash", "abc", "64 hexadecimal digits"), ("model_hash", "G" * 64, "64 hexadecimal digits")),
    ("avatar_time_limit_s", 0, "more than 0"),
    *(("avatar_queue", -1, "at least 0"), ("page", "perhaps", "not a valid bool")),
]
UNCHECKED = {"model", "face_model", "keys_file"}
"""Any text may be a place; who opens it says whether it is there."""


def test_the_defaults_are_right_and_survive_a_configuration_file() -> None:
    assert parse_settings({}) == ServeSettings()
    assert parse_settings(asdict(ServeSettings())) == ServeSettings()


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=lambda value: str(value)[:20])
def test_a_wrong_value_is_told_with_its_name(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: .*{words}"):
        parse_settings({name: value})


def test_every_setting_is_checked() -> None:
    assert {name for name, _, _ in WRONG} | UNCHECKED == {field.name for field in fields(ServeSettings)}


@pytest.mark.parametrize(
    ("name", "near"), [("modle", "model"), ("max_body_mbs", "max_body_mb"), ("timelimit_s", "time_limit_s")]
)
def test_a_misspelt_name_is_answered_with_the_near_one(name: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"there is no setting '{name}'; did you mean '{near}'"):
        parse_settings({name: 1})


@pytest.mark.parametrize(
    "text",
    ["none", "off", "null", "s3://bucket/model=5", "a: b", "C:\\models", "[x]", "it's #1", "007", "", "ä"],
)
def test_text_stays_the_text_that_it_is(text: str) -> None:
    """YAML, which the values go through, would read some of it as something else."""
    assert parse_settings({"model": text}).model == text


@pytest.mark.parametrize("digit", "01e")
def test_a_hash_of_digits_is_no_number(digit: str) -> None:
    text = f"1{digit}" + 62 * "0"
    assert parse_settings({"model_hash": text}).model_hash == text


def test_numbers_may_come_as_text() -> None:
    """From `serve run serve.app:build queue=3 page=false`, all values do."""
    settings = parse_settings({"queue": "3", "time_limit_s": "2.5", "page": "false", "keys": "none"})
    assert (settings.queue, settings.time_limit_s, settings.page, settings.keys) == (3, 2.5, False, "none")


def test_an_empty_value_of_a_file_is_empty_text() -> None:
    assert parse_settings({"keys_file": None}).keys_file == ""


def test_more_replicas_at_least_than_at_most() -> None:
    with pytest.raises(SettingsError, match="max_replicas: expected at least min_replicas"):
        parse_settings({"min_replicas": 3, "max_replicas": 2})
