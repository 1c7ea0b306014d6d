"""What a group answers to."""
