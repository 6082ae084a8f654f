"""Measurements of gdm among its peers."""
