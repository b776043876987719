"""The thinking graph: concepts, co-occurrence counts, the knowledge base, evidence and paths."""
