"""EHR-R1 as an open experiment framework: language models that reason over health records."""
