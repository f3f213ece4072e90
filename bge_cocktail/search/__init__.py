"""Nearest documents: exactly, by an index, by words."""
