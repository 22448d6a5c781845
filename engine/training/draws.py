"""What the draws of a micro-batch are a function of."""

from typing import ContextManager

from utils.rng import seed_all

from ..setup.group_draws import Group, GroupDraws, drawing
from .plan import BatchPlan


def seeded(plan: BatchPlan, seed: int, update: tuple[int, int], batch: int, rank: int) -> ContextManager[GroupDraws]:
    """Seeds a process' micro-batch, for mixup, dropout and drop path: the same draws whatever ran before.

    With TRAIN.TOTAL_BATCH_SIZE they are those that a single process makes: a group's are a function of the seed, the update
    and the group.

    Args:
        update: epoch, and number within it.
    """
    parts = plan.split.parts(batch, rank) if plan.split else []
    if not parts:
        seed_all(seed, *update, batch, rank)
        return drawing([])
    if len(parts) == 1 and parts[0].is_whole:
        seed_all(seed, *update, parts[0].group, 0)
        return drawing([])
    seed_all(seed, *update, batch, rank, 1)  # for what is not drawn by groups
    return drawing([Group((seed, *update, part.group, 0), part.size, part.rows) for part in parts])
