"""Names and free text to concepts: a dictionary or UMLS, linking, mentions and their cache."""
