"""The losses: pure functions of embeddings, and what the documents of a batch are to its queries."""
