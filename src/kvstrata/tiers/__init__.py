"""Places that hold chunks, behind one interface."""
