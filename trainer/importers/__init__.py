"""Public traces and live sources into a trace of this project; see docs/traces.md."""
