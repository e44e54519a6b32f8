"""The `kvstrata` command: look at, check and clear a directory of the filesystem tier."""
