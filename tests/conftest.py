"""What all tests share: how Hypothesis runs here."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a test that fails because the machine was busy is a flaky test.
settings.register_profile("tollbook", deadline=None)
settings.load_profile("tollbook")
