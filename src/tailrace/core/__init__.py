"""The pure core: values and decisions, no clock, no socket, no event loop."""
