"""What this machine offers, for training and inference alike: processors, devices, and how much fits at once."""
