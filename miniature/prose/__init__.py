"""The world as plain text: what the miniature's language model learns from."""
