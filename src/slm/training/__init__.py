"""The training loop, the optimizer, and what a run leaves behind."""

from slm.config import TrainConfig
from slm.training.loop import History, train_and_evaluate
from slm.training.optimizer import learning_rate_at, make_optimizer
from slm.training.step import train_step

__all__ = ["History", "TrainConfig", "learning_rate_at", "make_optimizer", "train_and_evaluate", "train_step"]
