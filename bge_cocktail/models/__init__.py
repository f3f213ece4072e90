"""Models as folders and in memory: layout, prompts, embeddings, their cache."""
