"""The command line: `tollbook`, one file a group of commands."""
