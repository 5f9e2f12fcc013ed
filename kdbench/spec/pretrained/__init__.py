"""What a teacher's checkpoint says of itself: read without torch, before anything is started."""
