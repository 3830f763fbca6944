"""The fan-out of one process."""
