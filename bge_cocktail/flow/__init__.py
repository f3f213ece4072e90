"""The whole flow from a run file."""
