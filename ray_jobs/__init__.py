"""Entry points that run on Ray: thin, and without science."""

import os

# Ray reads these when it is imported; every job imports this package first.
_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
for _name, _value in _SWITCHES.items():
    os.environ.setdefault(_name, _value)
