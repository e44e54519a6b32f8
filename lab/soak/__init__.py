"""Two engines, one directory, random faults, requests with known answers (`python -m lab.soak`)."""
