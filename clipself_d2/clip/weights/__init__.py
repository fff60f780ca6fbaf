"""Files of CLIP weights: their layouts, reading them strictly and safely, converting them."""
