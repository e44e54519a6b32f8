"""Fuzzing what reads bytes that others wrote: files of a storage directory, and what engines publish."""
