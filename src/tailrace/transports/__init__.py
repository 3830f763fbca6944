"""Bytes for SSE, WebSocket and long-poll."""
