"""Launching and watching the measured processes. Never imports torch."""
