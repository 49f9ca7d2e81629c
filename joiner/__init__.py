"""Joins exposures with feedback in event time."""
