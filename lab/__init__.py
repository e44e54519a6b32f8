"""Everything that runs real engines: tiny models, servers, the demo and the benchmarks.

Not part of the installed package: it needs vLLM, a repository checkout and minutes of machine time.
Import it, or run `python -m lab.<name>`, from the repository root.
"""
