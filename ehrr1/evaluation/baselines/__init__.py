"""Models that a language model is compared with."""
