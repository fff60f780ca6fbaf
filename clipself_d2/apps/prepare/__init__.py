"""Annotation files of public data sets in the form that the data sets here expect."""
