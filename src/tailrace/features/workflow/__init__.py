"""Workflow events, on old Pub/Sub channels, on streams, or on both."""
