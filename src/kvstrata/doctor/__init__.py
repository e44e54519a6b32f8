"""What will be cached, and which settings make hits zero or wrong: facts in, findings out.

Pure, but for `probe`, which tries a directory.
"""
