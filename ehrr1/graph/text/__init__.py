"""Map item names and free text to concepts: dictionary or UMLS, linking, mentions, their cache."""
