"""The category of all our warnings."""


class Task2VecWarning(UserWarning):
    """Something the user should know that does not stop the work."""
