"""Training an encoder on records."""
