"""Choosing the expert for a task: how it would have gone, by error matrix, and which one to take."""
