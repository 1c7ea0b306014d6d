"""What the network does without a group."""
