"""Fixtures that many files share, so that one endpoint serves them all."""

pytest_plugins = ["tests.support.buses", "tests.support.namespaces", "tests.support.s3"]
