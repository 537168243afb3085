"""Tests of every package; those on the real control plane are under controlplane."""
