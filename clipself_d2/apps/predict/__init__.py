"""Predictions on pictures of the user's own: predictor, demo, web page."""
