"""Campaigns that show what is promised about faults."""
