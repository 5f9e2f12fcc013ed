"""Students and teachers."""
