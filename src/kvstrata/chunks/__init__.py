"""What a chunk is: its key, its geometry, its namespace, its record. Pure: no torch, no vLLM, no I/O."""
