"""The libraries warn of what other libraries will drop one day; none of it is ours to mend."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for warning in ("DeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"default::{warning}")
