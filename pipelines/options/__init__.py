"""Options of the commands: what they are, how they are read and checked."""
