"""Read benchmarks of others: ready rows, EHRSHOT, MIMIC-CDM."""
