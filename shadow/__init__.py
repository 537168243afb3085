"""The shadow scheduler: replays a trace with the extender's own decisions and compares models."""
