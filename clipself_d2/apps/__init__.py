"""What people run that is not training."""
