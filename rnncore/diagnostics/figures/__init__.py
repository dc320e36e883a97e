"""Figures: what a report shows, drawn with matplotlib."""
