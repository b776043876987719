"""Write a hospital of invented patients in the files of MIMIC-IV."""
