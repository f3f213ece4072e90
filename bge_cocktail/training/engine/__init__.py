"""What training encoders and classifiers shares."""
