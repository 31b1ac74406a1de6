"""Fixtures that many files share, so that one endpoint serves them all."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.buses", "tests.support.namespaces", "tests.support.s3"]

# A machine that has other things to do is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
