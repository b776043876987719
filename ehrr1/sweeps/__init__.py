"""Many runs: a grid of overrides becomes a graph of runs, each a process of its own."""
