"""Builds pages, sessions and transitions from samples."""
