"""Servers that are more than one plain process: TLS with ACL, Sentinel, Cluster."""

from __future__ import annotations
