"""The bank of known mistakes in attention, one file per step."""
