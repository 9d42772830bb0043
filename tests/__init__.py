"""The tests. Most folders have the names of those of gptcli/. Import shared code as
tests.FOLDER.MODULE."""
