"""Kinds of tasks: a file each."""
