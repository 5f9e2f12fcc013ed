"""`kdbench check`: what is now against a baseline, and what a difference means."""
