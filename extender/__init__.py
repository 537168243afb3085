"""The scheduler extender: a pure decision half, and the server half around it."""
