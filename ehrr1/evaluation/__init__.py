"""Evaluation: predictions of models and baselines, their scores, and reports."""
