"""The page: nothing in it can act but its own script, it reads without JS, and in a browser it does what it says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from mote_quant.sweeps.report.fronts import fronts
from mote_quant.sweeps.report.page import render_page, view
from mote_quant.sweeps.report.palette import DARK, LIGHT
from tests.sweeps.results import KIB, document, one_seed

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is on PATH")
EVIL = '</script><img src=x onerror="alert(1)"><!-- \'&quot;\u2028 ]]>'
EMPTY = document() | {"points": [], "grid": [], "misfits": [], "failures": []}


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside, self.current = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside.append([tag, ""])
            self.current = self.inside[-1]

    def handle_endtag(self, tag):
        self.current = None

    def handle_data(self, data):
        if self.current:
            self.current[1] += data

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]


def hostile():
    """The document with something nasty wherever a name or a text can stand."""
    results = document(name=EVIL, description=EVIL, base=EVIL, train={EVIL: EVIL})
    for point in results["points"]:
        if point["contender"] == "moe-int3":
            point |= {"contender": EVIL, "group": EVIL, "recipe": EVIL}
    results["failures"] = [{"cell": EVIL, "contender": EVIL, "seed": 1, "error": EVIL}]
    results["misfits"] = [{"contender": EVIL, "budget": EVIL, "why": EVIL}]
    results["provenance"] = {"command": EVIL, "packages": {EVIL: EVIL}}
    return results


def test_names_and_errors_are_text_wherever_they_stand():
    page = Page(render_page(hostile()))
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert [tag for tag, _ in page.tags].count("section") == 9


def test_the_embedded_view_survives_the_escaping():
    page = Page(render_page(hostile()))
    embedded = json.loads(page.inside[1][1])
    assert embedded == json.loads(json.dumps(view(hostile())))
    assert EVIL in [contender["name"] for contender in embedded["contenders"]]


def test_only_its_own_style_and_script_may_act_and_nothing_is_fetched():
    page = Page(render_page(document()))
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; ")
    for (_, text), directive in zip([page.inside[0], page.inside[2]], ("style-src", "script-src"), strict=True):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not page.all("link")
    assert not [attributes for _, attributes in page.tags if {"src", "href", "style", "onclick"} & attributes.keys()]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", render_page(document()))


def test_without_javascript_headlines_and_tables_are_there():
    page = render_page(document())
    assert "<summary>at 40KiB (stored) <span>3 ahead</span></summary>" in page
    assert "<p>MoTE (mote-int4) beats the best full-precision MoE that fits (moe-int3) by 3.9 ± 0.3 points" in page
    assert "<td class='n' data-v='196608.0'>192 KiB</td>" in page
    assert page.count("<table") == 5
    assert "<noscript>" in page
    assert "d66c16f" in page


def test_many_headlines_fold_behind_their_budgets():
    budgets = [{"text": f"{size}KiB", "bytes": size * KIB} for size in (40, 50, 60)]
    opened = ["open" in attributes for attributes in Page(render_page(document(budgets=budgets))).all("details")]
    assert opened == [True, False, False]
    assert all("open" in attributes for attributes in Page(render_page(document())).all("details"))


def test_with_nothing_to_show_it_says_so():
    assert "Nothing to compare yet" in render_page(EMPTY)
    assert "With one seed there is no interval" in render_page(one_seed())


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("colours", "ground"), [(LIGHT, "#ffffff"), (DARK, "#191e26")])
def test_every_group_stands_out_from_the_ground(colours, ground):
    assert f"--card: {ground}" in render_page(EMPTY)
    for colour in colours:
        darker, lighter = sorted((luminance(colour), luminance(ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 3


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Open a document in a headless browser at a fragment; returns the page's DOM as the script left it."""
    folder = tmp_path_factory.mktemp("browser")

    def _browse(results, fragment=""):
        page = folder / "index.html"
        page.write_text(render_page(results))
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        command += ["--virtual-time-budget=2000", "--window-size=1280,900", "--dump-dom", f"{page.as_uri()}#{fragment}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return _browse


def points(dom):
    return {
        attributes["data-contender"]: attributes for attributes in Page(dom).all("g") if "data-contender" in attributes
    }


def best(dom):
    rows = (attributes for attributes in Page(dom).all("tr") if "data-group" in attributes)
    return {row["data-group"]: row.get("data-best") for row in rows}


def front(dom):
    return next(attributes["data-front"] for attributes in Page(dom).all("path") if "data-front" in attributes).split()


@needs_browser
def test_at_first_everything_is_shown_at_the_first_budget(browse):
    dom = browse(document())
    assert len(points(dom)) == 11
    assert points(dom)["mote-int4"]["aria-label"] == "mote-int4, MoTE: accuracy 84.0 ± 0.4 %, 3 seeds, 38.0 KiB stored"
    assert best(dom)["full-precision MoE"] == "moe-int3"
    assert front(dom) == [contender.name for contender in fronts(document())["stored"]]
    assert "open" not in Page(dom).all("dialog")[0]
    assert "hidden" not in next(section for section in Page(dom).all("section") if section.get("id") == "explorer")


@needs_browser
def test_hiding_and_a_budget_change_points_front_and_best(browse):
    dom = browse(document(), "budget=64KiB&hide=moe,mote-int4")
    assert points(dom).keys().isdisjoint({"moe-bf16", "moe-int8", "moe-int4", "moe-int3", "mote-int4"})
    assert best(dom) == {"MoTE": "mote-int8", "dense": "dense-bf16", "few int4 experts": "few-int4"}
    assert front(dom) == ["dense-int4", "few-int4", "mote-int3", "mote-int8"]
    assert "unfit" in points(dom)["mote-bf16"]["class"]
    assert "unfit" not in points(dom)["mote-int8"]["class"]


@needs_browser
def test_accounting_and_metric_can_be_switched(browse):
    dom = browse(document(), f"size=resident&metric=loss&budget={30 * KIB}")
    assert "loss 0.550 ± 0.011 nats, 3 seeds, 26.0 KiB resident" in points(dom)["few-int4"]["aria-label"]
    assert best(dom) == {"MoTE": None, "dense": None, "full-precision MoE": None, "few int4 experts": "few-int4"}
    turned = fronts(document(score="loss", higher_is_better=False))
    assert front(dom) == [contender.name for contender in turned["resident"]]


@needs_browser
def test_a_point_opens_with_its_recipe(browse):
    dom = browse(document(), "point=mote-int4")
    panel = dom[dom.index("<dialog") : dom.index("</dialog>")]
    assert 'open=""' in panel.split(">")[0]
    assert "name: mote-int4\nseed: 0\npipeline:" in panel
    assert "84.0 ± 0.4 %" in panel
    assert "98.0 KiB" in panel


@needs_browser
def test_hostile_names_stay_text_in_the_browser(browse):
    dom = browse(hostile(), f"point={quote(EVIL, safe='')}")
    page = Page(dom)
    assert not page.all("img")
    assert EVIL in points(dom)
    assert "open" in page.all("dialog")[0]


@needs_browser
def test_a_mangled_address_is_ignored(browse):
    dom = browse(document(), "budget=lots&hide=%ZZ&size=nonsense&metric=none&hide=nobody&point=ghost&&=&x")
    assert len(points(dom)) == 11
    assert "open" not in Page(dom).all("dialog")[0]


@needs_browser
def test_one_point_and_none(browse):
    alone = one_seed(budgets=[]) | {"points": one_seed()["points"][-1:]}
    dom = browse(alone)
    assert list(points(dom)) == ["mote-int3"]
    assert "NaN" not in dom[dom.index("<svg") : dom.index("</svg>")]
    assert points(browse(EMPTY)) == {}
    assert "Nothing shown has this number" in browse(document(), "hide=MoTE,dense,moe,few-int4")
