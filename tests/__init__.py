"""Tests, in folders named after those of gptcli/. Import what they share as tests.FOLDER.MODULE."""
