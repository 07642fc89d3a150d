"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A machine that is busy with something else is no reason to fail.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """What is remembered of files stays among the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTE_QUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
