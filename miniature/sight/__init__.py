"""Questions about pictures of the world, each also asked about the same thing in words."""
