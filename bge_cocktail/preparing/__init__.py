"""From messy data to clean, split, leak-free records."""
