"""What `reproduce_lm_cocktail.py` is made of: its tasks, the ways to make a model, its tables."""
