"""Learning without Forgetting (Li, Hoiem, TPAMI 2018, arXiv:1606.09282): distil the model that learnt the tasks before.

    L + alpha * mean_x H(softmax(z'(x) / T), softmax(z(x) / T)),     H(p, q) = -sum_c p_c log q_c

z' are the teacher's logits of the current data, both softmaxes over the classes of the tasks before alone, and there is
no factor T^2 (as in the paper; Hinton et al. have it). A departure: tasks with heads of their own are distilled
together, not head by head. LwF: the teacher is the client's model as its last visit to its last task left it, the
classes those of its own data. FedLwF: the teacher is the global model at the task's start.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clients.losses import Anchors, Batch, Forward, Kept, Left, Regulariser
from fedcl.answers import Tensors

TEACHER, CLASSES, KNOWN = "lwf.teacher", "lwf.classes", "lwf.known"
HIDDEN = -1e9  # in the place of a logit: a softmax makes it exactly 0, and its logarithm stays finite


def distillation(logits: Tensor, old: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Return H (b,) between the softmaxes over some classes of old and new logits (b, classes).

    Args:
        classes: (classes,) 1 for those that count; if none does the result is 0.
        temperature: T.
    """
    target, found = ((z / temperature).masked_fill(classes == 0, HIDDEN) for z in (old, logits))
    return -(target.softmax(1) * found.log_softmax(1)).sum(1) * classes.amax()


@dataclass(frozen=True, kw_only=True)
class LwF(Regulariser):
    """Keep a client's answers on old classes what its own model at the end of its last task gives."""

    alpha: float = 3.0
    temperature: float = 2.0
    keeps: ClassVar[tuple[Kept, ...]] = (Kept(name=TEACHER), Kept(name=CLASSES, of="classes"))
    teacher = TEACHER

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return alpha times the mean distillation loss of the current batch; 0 at the first task."""
        return self.loss(model, batch, anchors.own[CLASSES]["classes"])

    def loss(self, model: Forward, batch: Batch, classes: Tensor) -> Tensor:
        """Return the same for given old classes (classes,)."""
        gap = distillation(model(batch.now.x), batch.now.logits, classes, self.temperature)
        return self.alpha * (gap * batch.now.weight).sum()

    def leave(self, kept: Tensors, left: Left) -> Tensors:
        """Return the model as the next teacher, and the classes met so far."""
        classes = kept[CLASSES].clone()
        classes[left.case.data.y[left.case.items]] = 1
        return {TEACHER: left.model, CLASSES: classes}


@dataclass(frozen=True, kw_only=True)
class FedLwF(LwF):
    """Keep a client's answers on the classes of tasks begun before what the global model gave when this one began."""

    keeps: ClassVar[tuple[Kept, ...]] = ()
    reads = (TEACHER, KNOWN)

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return alpha times the mean distillation loss of the current batch; 0 until a second task has begun."""
        if CLASSES not in anchors.shared:
            return torch.zeros_like(batch.now.weight).sum()
        return self.loss(model, batch, anchors.shared[CLASSES]["classes"])
