"""Tests in folders named after those of gptcli/. Import shared code as tests.FOLDER.MODULE."""
