"""What people type, checked once: flags, ranges of keys, devices, processes, sentences."""
