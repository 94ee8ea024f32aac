"""What a PromQL expression reads, and which labels its result has: enough to find a name that nobody exports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta

import promql_parser as promql

Labels = frozenset[str]
TARGET: Labels = frozenset({"job", "instance"})
"""Added to every series by the scrape."""

Values = Mapping[str, Mapping[str, frozenset[str]]]
"""metric -> label -> its values."""


def parse(text: str) -> promql.Expr:
    """Grafana's variables count as durations."""
    return promql.parse(text.replace("$__interval", "15s").replace("$__rate_interval", "1m"))


def _parts(expr: promql.Expr) -> tuple[promql.Expr, ...]:
    """What it is made of."""
    if isinstance(expr, promql.MatrixSelector):
        return (expr.vector_selector,)
    if isinstance(expr, promql.BinaryExpr):
        return expr.lhs, expr.rhs
    if isinstance(expr, promql.Call):
        return tuple(expr.args)
    if isinstance(expr, promql.AggregateExpr | promql.ParenExpr | promql.SubqueryExpr | promql.UnaryExpr):
        return (expr.expr,)
    known = promql.VectorSelector | promql.NumberLiteral | promql.StringLiteral
    assert isinstance(expr, known), f"not known here: {type(expr)}"
    return ()


def selectors(expr: promql.Expr) -> Iterator[promql.VectorSelector]:
    """Every series selector in it, however deep."""
    if isinstance(expr, promql.VectorSelector):
        yield expr
    for part in _parts(expr):
        yield from selectors(part)


def gaps(expr: promql.Expr, step: timedelta, scrape: timedelta) -> Iterator[str]:
    """Ranges that leave something out where the expression is evaluated every ``step``.

    A range of samples has to reach back to one that the range before it had: what rose in between is in neither.
    """
    if isinstance(expr, promql.MatrixSelector) and expr.range < step + scrape:
        yield f"[{expr.range}], evaluated every {step}"
    if isinstance(expr, promql.SubqueryExpr):
        if expr.range < step:
            yield f"[{expr.range}:{expr.step}], evaluated every {step}"
        step = expr.step
    for part in _parts(expr):
        yield from gaps(part, step, scrape)


def check_values(expr: promql.Expr, known: Values) -> None:
    """AssertionError names a value that the label never has, and the selector then selects nothing (or leaves nothing
    out). Of a pattern of alternatives (a|b) each is a value; of any other at least one fits."""
    for selector in selectors(expr):
        for matcher in selector.matchers.matchers:
            where = f"{selector.name}{{{matcher.name}}}"
            values = known.get(selector.name, {}).get(matcher.name, frozenset())
            exact = matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual)
            wanted = {matcher.value} if exact else set(matcher.value.split("|"))
            for one in wanted:
                found = one in values if exact else any(re.fullmatch(one, value) for value in values)
                assert found, f"{where} is never {one!r}, but one of {sorted(values)}"


def labels(expr: promql.Expr, known: Mapping[str, Labels]) -> Labels:
    """The labels of the result. AssertionError names a metric or a label that does not exist.

    known: metric -> its labels.
    """
    if isinstance(expr, promql.VectorSelector):
        return _selected(expr, known)
    if isinstance(expr, promql.MatrixSelector):
        return _selected(expr.vector_selector, known)
    if isinstance(expr, promql.AggregateExpr):
        return _aggregated(expr, known)
    if isinstance(expr, promql.Call):
        return _called(expr, known)
    if isinstance(expr, promql.BinaryExpr):
        return _combined(expr, known)
    if isinstance(expr, promql.ParenExpr | promql.SubqueryExpr | promql.UnaryExpr):
        return labels(expr.expr, known)
    return frozenset()


def _selected(selector: promql.VectorSelector, known: Mapping[str, Labels]) -> Labels:
    assert selector.name in known, f"no metric {selector.name}"
    found = known[selector.name]
    for matcher in selector.matchers.matchers:
        assert matcher.name in found, f"{selector.name} has no label {matcher.name}"
    return found


def _aggregated(expr: promql.AggregateExpr, known: Mapping[str, Labels]) -> Labels:
    inner = labels(expr.expr, known)
    if expr.modifier is None:
        return frozenset()
    assert expr.modifier.type == promql.AggModifierType.By, f"only `by` is known here: {expr}"
    kept = frozenset(expr.modifier.labels)
    assert kept <= inner, f"no label {set(kept - inner)} in {expr.expr}"
    return kept


def _called(call: promql.Call, known: Mapping[str, Labels]) -> Labels:
    inner = frozenset[str]().union(*(labels(argument, known) for argument in call.args))
    if call.func.name == "histogram_quantile":
        assert "le" in inner, f"no buckets: {call}"
        return inner - {"le"}
    if call.func.name == "absent":
        return frozenset(m.name for s in selectors(call) for m in s.matchers.matchers)
    return inner


def _combined(expr: promql.BinaryExpr, known: Mapping[str, Labels]) -> Labels:
    left, right = labels(expr.lhs, known), labels(expr.rhs, known)
    operator = str(expr.op)
    if operator == "or":
        return left | right
    matching = expr.modifier.matching if expr.modifier is not None else None
    scalar = _scalar(expr.lhs) or _scalar(expr.rhs)
    if matching is None and not scalar:
        assert left == right, f"sides with other labels never meet: {expr}"
    elif matching is not None and matching.type == promql.LabelModifierType.Include:
        assert set(matching.labels) <= left & right, f"matched by labels that a side has not: {expr}"
    return left or right


def _scalar(expr: promql.Expr) -> bool:
    return isinstance(expr, promql.NumberLiteral) or (isinstance(expr, promql.Call) and expr.func.name == "time")


def template_labels(text: str) -> set[str]:
    """Labels that an alert's text ({{ $labels.job }}) or a dashboard's legend ({{job}}) names."""
    return set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*(?:\||}})", text))
