"""A real Kubernetes control plane on loopback, for tests: built once, started in seconds.

Read `cluster.py` first: `ControlPlane` is what tests use. `fixtures.py` offers it to pytest.
"""
