"""Benchmarks: each module prints its table."""
