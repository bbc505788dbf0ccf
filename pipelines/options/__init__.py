"""What the commands can be told, and how it is read and checked."""
