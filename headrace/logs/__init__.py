"""Recorded logs: one module a format, each from files to events in event-time order."""
