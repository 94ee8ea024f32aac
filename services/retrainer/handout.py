"""What the first process of a group hands out to the others: all that a challenger is made from, but no item's name."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import torch

from services.retrainer.challenger import Contest
from services.retrainer.gate import GateRules
from shared.model.config import TrainConfig
from shared.model.dataset import Sessions
from shared.model.dismissals import Dismissals
from shared.model.group import Group
from shared.model.holdout import Newest

_SESSIONS = ("items", "starts", "ended_at")
_NUMBERS = "numbers"
_CHAMPION = "champion."


def handed_out(contest: Contest | None, group: Group) -> Contest | None:
    """The first process' contest, in all of them; None: there is nothing to train."""
    if group.size == 1:
        return contest
    tensors = group.share(_packed(contest) if contest is not None and not group.rank else None)
    if not group.rank:
        return contest
    return _unpacked(tensors) if tensors else None


def _packed(contest: Contest) -> dict[str, torch.Tensor]:
    newest = contest.newest
    numbers = {
        "known": newest.known,
        "catalogue": len(newest.catalogue),
        "version": contest.version,
        "config": contest.config.to_json(),
        "rules": asdict(contest.rules),
    }
    tensors = {_NUMBERS: torch.frombuffer(bytearray(json.dumps(numbers).encode()), dtype=torch.uint8)}
    for part, sessions in (("older", newest.older), ("whole", newest.whole)):
        arrays = {name: getattr(sessions, name) for name in _SESSIONS}
        arrays |= {"after": sessions.dismissals.after, "dismissed": sessions.dismissals.items}
        tensors |= {f"{part}.{name}": torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    tensors["asked"] = torch.from_numpy(newest.asked)
    return tensors | {_CHAMPION + name: tensor for name, tensor in (contest.champion or {}).items()}


def _unpacked(tensors: dict[str, torch.Tensor]) -> Contest:
    numbers = json.loads(tensors[_NUMBERS].numpy().tobytes())

    def sessions(part: str) -> Sessions:
        items, starts, ended_at, after, dismissed = (
            tensors[f"{part}.{name}"].numpy() for name in (*_SESSIONS, "after", "dismissed")
        )
        return Sessions(items, starts, ended_at, Dismissals(after, dismissed))

    names = [str(number) for number in range(numbers["catalogue"])]
    newest = Newest(sessions("older"), sessions("whole"), tensors["asked"].numpy(), names, numbers["known"])
    champion = {k.removeprefix(_CHAMPION): v for k, v in tensors.items() if k.startswith(_CHAMPION)} or None
    config, rules = TrainConfig.from_json(numbers["config"]), GateRules(**numbers["rules"])
    return Contest(newest, champion, numbers["version"], config, rules)
