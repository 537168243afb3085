"""The extender, its shipped configuration and everything real around it."""
