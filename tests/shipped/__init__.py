"""What deploy/ holds, on a real control plane."""
