"""The settings of a run: declared once, checked at the door."""
