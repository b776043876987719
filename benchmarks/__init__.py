"""Measurements, each with its command in the docs; not imported by the package."""
