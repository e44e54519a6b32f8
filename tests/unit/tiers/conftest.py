"""Shows the values when an assertion of the shipped suites fails."""

import pytest

pytest.register_assert_rewrite("kvstrata.testing")
