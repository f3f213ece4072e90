"""Many models into one: streamed, without torch."""
