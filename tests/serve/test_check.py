"""A Serve configuration is held to every name, Ray's own and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serve.check import check

SHIPPED = Path("serve/config.yaml")


def test_the_shipped_configuration_is_right():
    assert check(SHIPPED) == []


@pytest.mark.parametrize(
    ("place", "name", "value", "message"),
    [
        ((), "aplications", [], "aplications: there is no such name; did you mean 'applications'"),
        (("http_options",), "request_timeout", 1, "http_options.request_timeout: there is no such name"),
        (("applications", 0), "route_prefx", "/", "applications.0.route_prefx: there is no such name"),
        (("http_options",), "port", "many", "http_options.port"),
        (("applications", 0, "args"), "min_replcas", 2, "there is no setting 'min_replcas'"),
        (("applications", 0, "args"), "queue", 0, "queue: expected at least 1, got 0"),
    ],
)
def test_a_mistake_is_named(place: tuple, name: str, value: object, message: str, tmp_path: Path):
    content = yaml.safe_load(SHIPPED.read_text())
    part = content
    for step in place:
        part = part[step]
    part[name] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    assert any(message in mistake for mistake in check(path)), check(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_what_is_no_mapping_is_named(text: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert len(check(path)) == 1
    assert str(path) in check(path)[0]
