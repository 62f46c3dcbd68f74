"""Figures of methods against each other."""
