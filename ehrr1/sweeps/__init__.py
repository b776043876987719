"""Sweeps: a grid of overrides becomes a graph of runs, each in a process of its own."""
