"""Files that other commands read: text embeddings, proposals, concept pools, pages of docs."""
