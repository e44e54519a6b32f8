"""The fleet: its replicas, and one index of what they hold. Pure: no socket, no clock."""
