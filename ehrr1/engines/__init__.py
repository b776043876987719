"""Engines that generate: Transformers here, vLLM beside this process, a server."""
