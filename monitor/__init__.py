"""Watches every stage, and alerts."""
