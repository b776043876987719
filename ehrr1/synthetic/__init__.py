"""Write the records of a hospital of synthetic patients in the files of MIMIC-IV."""
