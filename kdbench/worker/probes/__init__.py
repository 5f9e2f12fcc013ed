"""What is measured inside the process: time, memory, work."""
