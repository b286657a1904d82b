"""Which edges of a decoder carry a behaviour: MIB's circuit track on plain Hugging Face models."""
