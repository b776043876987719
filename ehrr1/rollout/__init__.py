"""The earlier name of `ehrr1.engines`, for commands that start its server."""
