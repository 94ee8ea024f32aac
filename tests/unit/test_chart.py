"""Charts: a PNG that holds what it was given, without a display."""

from __future__ import annotations

import struct
import sys

import pytest

from shared.adapters.chart import Line, Panel, draw, labels_of
from shared.core.errors import SettingsInvalid

PANEL = Panel("recall", [Line("a", [0, 1, 2], [0.1, float("nan"), 0.3], marks=[1.0])], True, [(1.0, "version 2")])


def test_draws_a_png_with_a_panel_below_the_other(tmp_path):
    one, two = (draw(tmp_path / "deep" / f"{n}.png", "title", [PANEL] * n, "hours") for n in (1, 2))
    sizes = [struct.unpack(">II", path.read_bytes()[16:24]) for path in (one, two)]
    assert one.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.5 * sizes[0][1]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    first, second = (draw(tmp_path / name, "title", [PANEL], "hours").read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SettingsInvalid, match="matplotlib"):
        draw(tmp_path / "a.png", "title", [PANEL], "hours")


def test_labels_of_moments_that_are_close_are_joined():
    moments = [(10.0, "alarm"), (10.5, "alarm"), (10.9, "model 2"), (11.2, "alarm"), (30.0, "alarm")]
    assert labels_of(moments, 1.0) == [(10.0, "alarm ×2, model 2"), (11.2, "alarm"), (30.0, "alarm")]
    assert labels_of([], 1.0) == []
