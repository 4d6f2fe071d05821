"""In the worker's parent process: messages are taken in, wait for their batch, and end."""
