"""Read and write the samples of the EHR-R1 release."""
