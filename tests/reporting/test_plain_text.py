"""What strangers wrote is shown as text: a terminal obeys none of it, rich reads no markup in it."""

from __future__ import annotations

import re

import pytest

from hfrlhf.reporting.plain_text import printable
from hfrlhf.trainers.callbacks import print_samples

TEXTS = [
    "\x1b[31mred\x1b[2J",
    "\x1b]0;new title\x07",
    "back\x08\x08\rover",
    "\x9b31m",
    "[red]words[/red] [link=http://example.org]x[/link]",
    "[/]",
    "end \\",
    "turned \u202e round",
    "half \ud800",
    "\x00",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_table_of_samples_shows_every_text_as_it_is(capsys, text, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then styles, as on a terminal
    monkeypatch.setenv("COLUMNS", "200")
    print_samples({"first rollout": [{"prompt": text, "completion": text, "score": 1.0}]})
    shown = capsys.readouterr().out
    own = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # the styles of the table itself
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", own)
    harmless = re.sub(r"[\x00-\x1f\x7f-\x9f\u202e\ud800]", "\ufffd", text)
    assert own.count(harmless.strip()) == 2
    plain = {"prompt": "a", "completion": "a", "score": 1.0}
    print_samples({"first rollout": [plain]})
    styles = [sorted(set(re.findall(r"\x1b\[[0-9;]*m", out))) for out in (shown, capsys.readouterr().out)]
    assert styles[0] == styles[1]


def test_what_is_text_in_any_script_stays():
    text = "naïve 漢字\u3000かな\tمرحبا 👩‍👩‍👧 क्‍ष\nρ_t\u00a0±"
    assert printable(text) == text
