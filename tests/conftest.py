"""Settings that all tests share."""

import os

import hypothesis
import pytest

# The shipped suites show the values when one of their assertions fails.
pytest.register_assert_rewrite("kvstrata.testing")

# A slow shared machine is no bug: time limits belong to pytest-timeout. What a run finds is printed
# as a blob, so that it can be repeated elsewhere.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# Continuous integration judges a change, so it asks the same questions every time.
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("default"), derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")
