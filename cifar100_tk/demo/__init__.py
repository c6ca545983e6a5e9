"""A page for people: drop an image, see what the network sees, what it takes it for, and where it looked."""
