"""What a stranger may send: strategies for it, and readers that must survive it."""
