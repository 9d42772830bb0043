"""Learners' code runs here: in another process, with limits on time and memory."""
