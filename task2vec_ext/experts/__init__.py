"""Fine-tuned networks that may be chosen for a task, and their errors on other tasks."""

from .errors import IMAGENET, ErrorMatrix
from .expert import Expert, experts_in, load_expert, save_expert, train_expert
from .finetune import fine_tune
from .recipe import Recipe
from .transfer import classifier_error, transfer_errors, transfer_gain

__all__ = [
    "IMAGENET",
    "ErrorMatrix",
    "Expert",
    "Recipe",
    "classifier_error",
    "experts_in",
    "fine_tune",
    "load_expert",
    "save_expert",
    "train_expert",
    "transfer_errors",
    "transfer_gain",
]
