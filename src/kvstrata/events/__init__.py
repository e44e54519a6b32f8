"""What engines publish about their KV caches, and what may be believed of it."""
