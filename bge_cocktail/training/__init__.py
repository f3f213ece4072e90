"""Training encoders and classifiers, on sentence-transformers' trainer."""
