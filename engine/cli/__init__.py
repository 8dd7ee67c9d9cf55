"""The command line: `main` parses and reports, and each command has a file of its own."""
