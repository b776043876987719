"""Baseline models for the comparison with language models."""
