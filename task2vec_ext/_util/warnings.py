"""The category of all warnings of this package."""


class Task2VecWarning(UserWarning):
    """A warning of this package. The call that warns continues."""
