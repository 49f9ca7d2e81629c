"""Learns the policy from transitions."""
