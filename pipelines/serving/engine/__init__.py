"""One thread that draws and describes for everyone: requests, jobs, their rows and their turns."""
