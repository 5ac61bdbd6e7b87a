from __future__ import annotations

import pytest

from dfmvr.evaluation.settings import EvaluationSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_factor": 0.0}, "evaluation.crop_factor: expected a positive number, got 0.0"),
        ({"icp_points": 5}, "evaluation.icp_points: expected at least 100, got 5"),
        ({"floor_ridge": -1.0}, "evaluation.floor_ridge: expected 0 or more"),
        ({"max_samples": 0}, "evaluation.max_samples: expected None or at least 1, got 0"),
        ({"given_views": ("top",)}, r"evaluation.given_views: expected some of .* got \['top'\]"),
        ({"distance_backend": "gpu"}, "evaluation.distance_backend: expected one of .* got 'gpu'"),
    ],
)
def test_wrong_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**change)
