"""Models as files that run without this project, with text embeddings as an input."""
