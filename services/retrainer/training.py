"""One training from the session log to the registry: from the champion on, through the gate, and safe to interrupt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from services.retrainer.budget import MemoryBudget, TimeBudget, peak_bytes
from services.retrainer.challenger import Challenger, Contest, contest_config, lineage_of, make_challenger
from services.retrainer.gate import GateRules
from services.retrainer.handout import handed_out
from services.retrainer.recipe import Reporter, run_id, shared_state
from services.retrainer.training_plan import Plan, Plans
from services.retrainer.training_window import Bounds, Champion, Material, SessionWindow, TooLittle, read_material
from shared.adapters.checkpoints import Checkpoints
from shared.adapters.settings import TrainSettings
from shared.core.errors import ModelDamaged, NoSuchVersion, Unavailable
from shared.core.events import EventRules
from shared.core.registry_port import Manifest, ModelRegistry, rolled_back
from shared.model.config import ModelConfig, TrainConfig
from shared.model.group import ALONE, Group
from shared.model.train import TrainerState

NOTHING: dict[str, Any] = {"published": None, "promoted": False, "gate": None}


class Training:
    """One training. In a group, only the first process uses log, registry and folder."""

    def __init__(
        self,
        settings: TrainSettings,
        rules: EventRules,
        log: SessionWindow,
        registry: ModelRegistry,
        report: Reporter,
        group: Group = ALONE,
    ) -> None:
        self._settings, self._rules, self._log, self._registry = settings, rules, log, registry
        self._report, self._group = report, group
        self._budget = TimeBudget(settings.train_budget_s)
        self._memory = MemoryBudget(settings.train_memory_mb << 20, peak_bytes())
        self._plans = Plans(Path(settings.train_dir))

    def run(self) -> dict[str, Any] | None:
        """What the last line says; None in all processes but the first. Raises DriftwoodError."""
        if self._group.rank:
            self._compete(None, None)
            return None
        with self._plans.alone():
            return self._first()

    def _first(self) -> dict[str, Any]:
        pointer, champion = self._champion()
        last = self._plans.last()
        outcome = self._published_before(last, pointer) if last is not None else None
        found = self._material(last, champion) if outcome is None else TooLittle(outcome)
        if isinstance(found, TooLittle):
            self._plans.clear()
            self._compete(None, None)  # the other processes are told
            return {**NOTHING, **found.told}
        material, contest, run = found
        store = self._plans.checkpoints(run)
        challenger = self._compete(contest, store)
        assert challenger is not None
        told = {"data": self._log.uri, "trained_at": int(time.time() * 1000), **material.told, "run": run}
        outcome = self._publish(challenger, contest, pointer, told)
        self._plans.clear()
        return outcome

    def _champion(self) -> tuple[str | None, Champion | None]:
        """(the version in service, None: there is none; that, unless it cannot be read)."""
        pointer = None
        try:
            pointer = self._registry.current()
            if pointer is None:
                return None, None
            model = self._registry.load(pointer)
        except (ModelDamaged, NoSuchVersion) as error:
            self._report.say(f"the champion cannot be read, so training begins from nothing: {error}")
            return pointer, None
        newest, trained_at = (model.manifest.lineage.get(name) for name in ("newest_event", "trained_at"))
        learnt = newest if isinstance(newest, int) else 0
        if isinstance(trained_at, int):
            learnt = min(learnt, trained_at)  # one event that was ahead of the clock does not make all others old
        return pointer, Champion(pointer, dict(model.weights), model.items, learnt)

    def _published_before(self, last: Plan, pointer: str | None) -> dict[str, Any] | None:
        """What an interrupted training had published already, put in service if that is what was left to do."""
        for manifest in self._registry.versions():
            if manifest.lineage.get("run") != last.run:
                continue
            gate = manifest.metrics.get("gate") or {}
            won = gate.get("decision") == "promoted" and manifest.version not in rolled_back(self._registry.notes())
            if won and pointer == manifest.lineage.get("replaces"):
                self._registry.set_current(manifest.version)
            promoted = won and self._registry.current() == manifest.version
            self._report.say(f"version {manifest.version} was published before the interruption")
            train_s = manifest.lineage.get("train_s")
            told = {"published": manifest.version, "promoted": promoted, "gate": gate, "train_s": train_s}
            return {"outcome": "trained", **told}
        return None

    def _material(self, last: Plan | None, champion: Champion | None) -> tuple[Material, Contest, str] | TooLittle:
        """(what to train on, as a contest, its id). That of the last plan, where the log still gives the same."""
        version = champion.version if champion else None
        changed_at = self._settings.train_since_ms
        digest = self._settings.model_dump_json(exclude={"train_dir", "train_budget_s", "train_since_ms"})
        if last is not None and (last.champion, last.settings) == (version, digest):
            found = self._read(champion, last.bounds, last.changed_at)
            if not isinstance(found, TooLittle) and found[2] == last.run:
                return found
            self._report.say("the log has changed since the training that was interrupted: training begins anew")
        found = self._read(champion, Bounds(), changed_at)
        if not isinstance(found, TooLittle):
            bounds = found[0].bounds
            assert bounds.since is not None
            assert bounds.until is not None
            plan = Plan(found[2], version, digest, bounds.since, bounds.until, changed_at, time.time())
            self._plans.begin(plan)
        return found

    def _read(
        self, champion: Champion | None, bounds: Bounds, changed_at: int
    ) -> tuple[Material, Contest, str] | TooLittle:
        settings = self._settings
        of_champion = champion.width if champion else 0
        width = settings.train_width or of_champion or ModelConfig().width
        material = read_material(
            self._log,
            self._rules,
            champion,
            bounds,
            changed_at=changed_at,
            events=settings.train_window_events,
            least_sessions=settings.train_min_sessions,
            memory=self._memory,
            width=width,
            asked=settings.gate_events,
            say=self._report.say,
        )
        if isinstance(material, TooLittle):
            return material
        warm = width == of_champion
        config = TrainConfig(ModelConfig(width), seed=settings.train_seed)
        config = contest_config(config, warm, settings.train_epochs, material.newest.older.pairs)
        rules = GateRules(settings.gate_margin, settings.gate_confidence)
        weights, version = (champion.weights, champion.version) if champion else (None, None)
        newest = material.newest
        whole = run_id(config, newest.whole, len(newest.catalogue))
        run = f"{run_id(config, newest.older, newest.known)}-{whole}-{version or 0}"
        return material, Contest(newest, weights, version, config, rules), run

    def _compete(self, contest: Contest | None, store: Checkpoints | None) -> Challenger | None:
        """In all processes of the group at once."""
        contest = handed_out(contest, self._group)
        if contest is None:
            return None
        resume = shared_state(self._last(store) if store else None, self._group)
        if resume is not None:
            self._report.say(f"going on after epoch {resume.meta['epoch']}")
        newest = contest.newest
        self._report.say(
            f"training {'on from version ' + contest.version if contest.version else 'a first model'}: "
            f"{newest.older.pairs:,} pairs, {newest.known:,} items, {len(newest.older.dismissals):,} dismissals"
        )
        return make_challenger(
            contest,
            self._budget,
            self._report,
            resume=resume,
            on_epoch=(lambda state: self._keep(store, state)) if store else None,
            group=self._group,
        )

    def _last(self, store: Checkpoints) -> TrainerState | None:
        try:
            return store.last()
        except (ModelDamaged, Unavailable) as error:
            self._report.say(f"training begins anew: {error}")
            return None

    def _keep(self, store: Checkpoints, state: TrainerState) -> None:
        """A checkpoint is a convenience: without room for one, training goes on."""
        try:
            store.save(state)
        except Unavailable as error:
            self._report.say(f"no checkpoint: {error}")

    def _publish(
        self, challenger: Challenger, contest: Contest, pointer: str | None, told: dict[str, Any]
    ) -> dict[str, Any]:
        gate, promote = dict(challenger.verdict.numbers), challenger.verdict.promoted
        now = self._pointer()
        if promote and now != pointer:
            reason = f"version {now} came into service meanwhile, against which it was not measured"
            gate |= {"decision": "kept back", "reason": reason}
            promote = False
        names = contest.newest.catalogue[: challenger.items]
        learnt = told["until"] if challenger.final == "tune" else int(contest.newest.older.ended_at.max())
        lineage = lineage_of(challenger, told | {"newest_event": learnt, "replaces": pointer}, contest.version)
        manifest = self._registry.publish(
            challenger.weights,
            names,
            config=contest.config.to_json(),
            metrics=_metrics(gate),
            lineage=lineage,
            make_current=promote,
        )
        return self._told(manifest, gate, promote and self._pointer() == manifest.version, len(names))

    def _pointer(self) -> str | None:
        try:
            return self._registry.current()
        except ModelDamaged:
            return None

    def _told(self, manifest: Manifest, gate: dict[str, Any], promoted: bool, items: int) -> dict[str, Any]:
        lineage = manifest.lineage
        self._report.say(f"published version {manifest.version}, {'in service' if promoted else 'kept back'}")
        return {
            "outcome": "trained",
            "published": manifest.version,
            "promoted": promoted,
            "gate": gate,
            "items": items,
            **{name: lineage[name] for name in ("parent", "train_s", "epochs", "events", "sessions", "out_of_time")},
            **{name: lineage[name] for name in ("shrunk_to", "shrunk_from") if name in lineage},
            "total_s": round(self._budget.elapsed, 2),
            "peak_mb": peak_bytes() >> 20,
        }


def _metrics(gate: dict[str, Any]) -> dict[str, Any]:
    base = gate["popularity"]
    told = {"popularity_recall20": base["recall20"], "popularity_mrr20": base["mrr20"]}
    return {**gate["challenger"], "events": gate["events"], **told, "gate": gate}
