"""Reaching a guest: its identity, its SSH server, and the probes that run inside it."""
