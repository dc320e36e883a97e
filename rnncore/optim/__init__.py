"""Training on any backend: SGD, Adam, and clipping by the gradient norm."""

from rnncore.optim.clipping import clip_grad_norm
from rnncore.optim.optimisers import SGD, Adam

__all__ = ["SGD", "Adam", "clip_grad_norm"]
