"""Maps the tower's features to the language model's embeddings."""
