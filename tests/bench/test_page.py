import base64
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_sglang.bench.page import WORDS, Picture, Section, render

RUNS = [{"policy": "fcfs", "seed": 1, "sglang": "0.5.23", "jct_mean": 12.3456789, "queue_mean": None}]
VOID = {"meta", "link", "img"}


class Reader(HTMLParser):
    """What is in a page? Its tags in order, its text, every address it names; raises where tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.text, self.addresses = [], [], "", []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def section(heading: str = "coding", *pictures: Picture) -> Section:
    return Section(heading, "a finding", ["policy", "JCT"], [["fcfs", "1.0"]], pictures)


def picture(folder: Path) -> Picture:
    path = folder / "a.png"
    path.write_bytes(b"\x89PNG of a test")
    return Picture(path, "an alt", "a caption")


def test_a_page_stands_alone(tmp_path):
    page = render([section("coding", picture(tmp_path))], RUNS, {})
    (source,) = [address for address in Reader(page).addresses if address.startswith("data:image/png")]
    assert base64.b64decode(source.partition(",")[2]) == b"\x89PNG of a test"
    assert all(address.startswith(("data:", "#")) for address in Reader(page).addresses)
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
    assert "script" not in Reader(page).tags


def test_a_page_tells_what_was_run_every_word_and_every_run():
    seen = Reader(render([section()], RUNS, {"command": "astraea bench --seeds 1", "commit": "9331e9f"})).text
    for text in ("SGLang 0.5.23", "seed 1", "astraea bench --seeds 1", "9331e9f", "a finding", "12.3457", *dict(WORDS)):
        assert text in seen
    assert "None" not in seen


def test_every_section_can_be_reached_from_the_top():
    page = render([section("one"), section("two")], RUNS, {})
    links = [address[1:] for address in Reader(page).addresses if address.startswith("#")]
    assert links == ["s1", "s2", "words", "runs"] and all(f'id="{link}"' in page for link in links)


def test_a_page_of_no_runs_is_a_page():
    assert "h1" in Reader(render([], [], {})).tags


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=20))
def test_whatever_a_text_holds_it_is_shown_and_never_markup(text):
    hostile = f"<script>&\"'{text}</script>"
    run = {"policy": hostile, "seed": 1, "sglang": hostile, "device": hostile}
    filled = Section(hostile, hostile, [hostile], [[hostile]], [])
    plain = Section("x", "x", ["x"], [["x"]], [])
    shown, usual = (
        Reader(render([filled], [run], {hostile: hostile})),
        Reader(render([plain], [dict.fromkeys(run, "x") | {"seed": 1}], {"x": "x"})),
    )
    assert shown.tags == usual.tags
    assert shown.text.count(hostile) >= 9
