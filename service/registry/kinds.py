"""What a name is the name of, besides an edit."""

STEERING = "steering"
"""A preset that steers."""

VECTOR = "vector"
"""A direction."""

DATASET = "dataset"
"""Rows of prompts that evaluations read."""

EVALUATION = "evaluation"
"""What an evaluation found, with its files."""

EXAMPLES = "examples"
"""Questions about pictures, with their answers, that calibrations read."""

CALIBRATION = "calibration"
"""What a calibration of back-patching found, with its files."""

EVIDENCE = "evidence"
"""The verdict on a feature or on an edit's version, for policies."""

POLICY = "policy"
"""Which evidence a tenant asks for beyond what the operator does."""


def word_of(kind: str) -> str:
    """How people call a thing of that kind, and its path."""
    return "preset" if kind == STEERING else kind
