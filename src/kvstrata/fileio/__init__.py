"""Bytes between files and memory, in calls that release the interpreter lock."""
