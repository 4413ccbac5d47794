"""What the user sees and types: tables, live lines, the command line."""
