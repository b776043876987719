"""The configuration: its typed schema, and what is said of a wrong one."""
