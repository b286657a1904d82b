"""What a name is the name of, besides an edit."""

STEERING = "steering"
"""A preset that steers."""

VECTOR = "vector"
"""A direction."""
