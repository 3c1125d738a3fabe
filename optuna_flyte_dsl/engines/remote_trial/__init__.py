"""A trial in another process or in a pod: a handle goes there, and a server here answers it."""
