"""The demo: the whole loop embedded, without a cluster."""
