"""What a PromQL expression reads, and which labels its result has: enough to find a name that nobody exports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import promql_parser as promql

Labels = frozenset[str]
TARGET: Labels = frozenset({"job", "instance"})
"""Added to every series by the scrape."""

_GRAFANA = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h"}


def parse(text: str) -> promql.Expr:
    """Grafana's variables count as durations."""
    for variable, value in _GRAFANA.items():
        text = text.replace(variable, value)
    return promql.parse(text)


def selectors(expr: promql.Expr) -> Iterator[promql.VectorSelector]:
    """Every series selector in it, however deep."""
    if isinstance(expr, promql.VectorSelector):
        yield expr
    elif isinstance(expr, promql.MatrixSelector):
        yield expr.vector_selector
    elif isinstance(expr, promql.BinaryExpr):
        yield from selectors(expr.lhs)
        yield from selectors(expr.rhs)
    elif isinstance(expr, promql.Call):
        for argument in expr.args:
            yield from selectors(argument)
    elif isinstance(expr, promql.AggregateExpr | promql.ParenExpr | promql.SubqueryExpr | promql.UnaryExpr):
        yield from selectors(expr.expr)
    else:
        assert isinstance(expr, promql.NumberLiteral | promql.StringLiteral), f"not known here: {type(expr)}"


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
    scalar = isinstance(expr.lhs, promql.NumberLiteral) or isinstance(expr.rhs, promql.NumberLiteral)
    if matching is None and not scalar:
        assert left == right, f"sides with other labels never meet: {expr}"
    elif matching is not None and matching.type == promql.LabelModifierType.Include:
        assert set(matching.labels) <= left & right, f"matched by labels that a side has not: {expr}"
    return left or right


def template_labels(text: str) -> set[str]:
    """Labels that an alert's text ({{ $labels.job }}) or a dashboard's legend ({{job}}) names."""
    return set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*(?:\||}})", text))
