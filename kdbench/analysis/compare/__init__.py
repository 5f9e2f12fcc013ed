"""Two runs side by side: what `kdbench compare` prints."""
