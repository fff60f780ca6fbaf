"""Campaigns that show what is promised about faults, bad input and hostile files."""
