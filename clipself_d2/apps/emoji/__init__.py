"""The embedded world: emoji sprites, stuff textures, scenes and their annotation files."""
