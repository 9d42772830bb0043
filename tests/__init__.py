"""The tests. Most folders have the name of the folder in gptcli/ that they test.

A test imports the helpers of another file as tests.FOLDER.MODULE.
"""
