"""What the product does with hostile files."""
