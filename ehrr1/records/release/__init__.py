"""Read and write the records of the EHR-R1 release."""
