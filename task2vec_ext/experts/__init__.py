"""Experts: fine-tuned networks that may be chosen for a task, and their errors on other tasks."""

from .errors import IMAGENET, ErrorMatrix
from .expert import Card, Expert, experts_in, load_expert, save_expert, train_expert
from .features import ExpertFeatures, Extractor
from .finetune import Epoch, FineTuned, fine_tune
from .network import RunOptions
from .recipe import RECIPES, Recipe
from .transfer import classifier_error, transfer_errors, transfer_gain

__all__ = [
    "IMAGENET",
    "RECIPES",
    "Card",
    "Epoch",
    "ErrorMatrix",
    "Expert",
    "ExpertFeatures",
    "Extractor",
    "FineTuned",
    "Recipe",
    "RunOptions",
    "classifier_error",
    "experts_in",
    "fine_tune",
    "load_expert",
    "save_expert",
    "train_expert",
    "transfer_errors",
    "transfer_gain",
]
