"""Ask a model about a record: `EHRModel`, and what a query and its answer are."""
