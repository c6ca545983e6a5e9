"""A page for people: drop a picture, see what the network sees, what it takes it for, and where it looked."""
