"""The configuration: its typed schema, its rules, error messages and help."""
