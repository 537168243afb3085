"""Fixtures that several test modules share."""

pytest_plugins = ["tests.mlflow_server", "tests.controlplane.fixtures"]
