"""The sandbox for learners' code: a separate process with limits on time and memory."""
