"""The read side: results as frames, tables and figures. Never imports torch."""
