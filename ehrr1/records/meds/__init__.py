"""Read and write records as MEDS."""
