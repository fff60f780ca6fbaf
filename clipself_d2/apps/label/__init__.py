"""Data sets from pictures and words: a detector's boxes and masks as annotations."""
