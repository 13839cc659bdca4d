"""Distil on plain outputs: exit weights, losses, the exit ensemble's target, teacher policies.

A leaf: nothing here knows a supernet, a data set or a recipe. Logits come in as tensors of shape (N, classes), one per
exit and first exit first, so any network with one or more classifiers can be trained with it. Reading order:

- `weights`: how much each exit counts, as exact fractions;
- `losses`: the ensemble of exits, the teacher's target, the joint loss and the student's loss;
- `learned`: weights of an ensemble, learned on outputs that no exit was trained on;
- `policies`: which of the networks that earlier phases left becomes the next teacher, and why;
- `external`: a teacher from timm.

One training step of an elastic phase reads::

    target = teacher_target(teacher_exits, weights.ensemble)  # once, under no_grad
    for logits in students:
        student_loss(logits, cross_entropy(logits, labels), target=target, distance=distance("cross_entropy"),
                     kd_ratio=1.0)["loss"].backward()
"""

from distill.errors import DistillError
from distill.external import Normalisation, TeacherFile, external_teacher, read_state_dict
from distill.learned import learned_weights
from distill.losses import (
    Distance,
    Target,
    distance,
    distances,
    ens_kd_target,
    ensemble,
    joint_loss,
    mse,
    soft_cross_entropy,
    student_loss,
    students_loss,
    teacher_target,
)
from distill.policies import ScoreOrder, TeacherCandidate, TeacherChoice, check_policy, choose, policies
from distill.weights import ExitWeights, exit_weights, renormalised, schemes

__all__ = (
    "Distance",
    "DistillError",
    "ExitWeights",
    "Normalisation",
    "ScoreOrder",
    "Target",
    "TeacherCandidate",
    "TeacherChoice",
    "TeacherFile",
    "check_policy",
    "choose",
    "distance",
    "distances",
    "ens_kd_target",
    "ensemble",
    "exit_weights",
    "external_teacher",
    "joint_loss",
    "learned_weights",
    "mse",
    "policies",
    "read_state_dict",
    "renormalised",
    "schemes",
    "soft_cross_entropy",
    "student_loss",
    "students_loss",
    "teacher_target",
)
