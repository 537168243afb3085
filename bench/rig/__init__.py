"""What the benchmarks are driven by: a simulated cluster, a server process, a caller."""
