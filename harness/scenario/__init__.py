"""Scenarios: what a file may say, how it is read and checked, and what its assertions mean."""
