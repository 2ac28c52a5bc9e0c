"""Honest numbers for any generator."""
