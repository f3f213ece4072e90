"""Models judged on tasks: scores, intervals, comparisons, the folder that they are kept in."""
