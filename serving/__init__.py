"""Serving: actions and ranked pages over HTTP, and the version controller that decides which policy they come from."""
