"""The parts of a report: each a function from what runs hold to a section, or to nothing."""
