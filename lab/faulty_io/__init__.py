"""System calls that fail on purpose, below one directory, in a running process."""
