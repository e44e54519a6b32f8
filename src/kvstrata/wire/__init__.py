"""What passes between an engine and whoever follows it: bytes on one side, values on the other. Pure."""
