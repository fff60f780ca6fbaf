"""Reports on towers and models: region alignment, heat maps, trivial answers."""
