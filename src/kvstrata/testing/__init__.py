"""What others need to test against kvstrata: conformance suites, fault wrappers, damaged files.

`contract` and `stateful` need pytest and hypothesis; `faults` and `damage` need neither.
"""
