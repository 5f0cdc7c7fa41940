"""Helpers for tests, importable from any of them as `support`."""
