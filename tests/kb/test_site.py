"""The built site: strict, complete, without a request to anybody else."""

from __future__ import annotations

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from kb import render
from kb.export import exports
from kb.load import load_literature
from kb.schema import Literature
from tests.kb.test_render import TABLE

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
HOSTILE = (
    "</title><script>alert(1)</script> | [x](javascript:alert(1)) {: onclick=alert(1) } &lt;b&gt;"
)
# 1 x 1 pixel
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f"
    "0005fe02fe0def46b80000000049454e44ae426082"
)


class Page(HTMLParser):
    """Links, ids and loaded files of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += values.items()
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])

    def handle_data(self, data: str) -> None:
        self.text += data


def seeds() -> Literature:
    """The works the list began with, and one whose texts are an attack."""
    real = load_literature(ROOT / "papers.yaml")
    few = tuple(p for p in real.papers if p.seed)
    attack = few[0].model_copy(
        update={
            "id": "zz-attack",
            "title": HOSTILE,
            "authors": (HOSTILE,),
            "notes": (HOSTILE,),
            "base_models": (HOSTILE,),
            "summary": HOSTILE,
            "page": "javascript:alert(1)",
        }
    )
    return real.model_copy(update={"papers": (*few, attack)})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of `seeds`, built strictly: any warning of the builder ends the build."""
    folder = tmp_path_factory.mktemp("site")
    source, site = folder / "src", folder / "out"
    picture = folder / "pareto.png"
    picture.write_bytes(PNG)
    inputs = render.Inputs(
        seeds(),
        render.project(ROOT),
        methods=render.read_methods(ROOT / "methods"),
        results={"fashion_unet": {**TABLE, "notes": [HOSTILE]}},
        images={"fashion_unet": (picture,)},
        contributing=(ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    )
    data = exports(inputs.literature, inputs.project.repository)
    render.stage(inputs, ROOT / "site" / "templates", ROOT / "site" / "docs", source, data)
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    config = load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(source), site_dir=str(site), strict=True
    )
    build(config)
    return site


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(built.rglob("*.html"))}


def test_the_builder_never_writes_into_the_sources() -> None:
    assert SETTINGS["strict"] is True
    for name in ("docs_dir", "site_dir"):
        folder = (ROOT / SETTINGS[name]).resolve()
        assert folder.parent == ROOT / "build"
    assert SETTINGS["docs_dir"] != SETTINGS["site_dir"]
    assert "build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_only_plugins_that_come_with_the_theme_are_used() -> None:
    assert SETTINGS["plugins"] == ["search"]
    assert SETTINGS["theme"]["font"] is False


def test_every_work_family_and_method_has_its_page(built: Path) -> None:
    for paper in seeds().papers:
        assert (built / "papers" / f"{paper.id}.html").is_file()
        assert (built / "families" / f"{paper.family.value}.html").is_file()
    for method in render.read_methods(ROOT / "methods"):
        assert (built / "methods" / f"{method.name}.html").is_file()
    assert (built / "results" / "fashion_unet.html").is_file()
    assert (built / "results" / "fashion_unet" / "pareto.png").read_bytes() == PNG


def test_every_link_within_the_site_leads_somewhere(built: Path, pages: dict[Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # served from any depth, so its links start at the root
        for href in page.links:
            parts = urlsplit(href)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {href}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids, f"{path.name}: {href}"
            checked += 1
    assert checked > 500


def test_nothing_is_loaded_from_elsewhere(built: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).scheme, f"{path.name} loads {address}"
            assert not address.startswith("//"), f"{path.name} loads {address}"
    for style in built.rglob("*.css"):
        found = re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text("utf-8"))
        assert not found, style.name


def test_links_out_are_https_only(pages: dict[Path, Page]) -> None:
    schemes = {urlsplit(href).scheme for page in pages.values() for href in page.links}
    assert schemes <= {"", "https"}


def test_an_attack_in_the_data_stays_text(built: Path, pages: dict[Path, Page]) -> None:
    attacked = pages[built / "papers" / "zz-attack.html"]
    honest = pages[built / "papers" / "diff-pruning.html"]
    assert attacked.tags.count("script") == honest.tags.count("script")
    assert "alert(1)</script> | [x](javascript:alert(1)) {: onclick=alert(1) }" in attacked.text
    for path, page in pages.items():
        assert not any(name.startswith("on") for name, _ in page.attributes), path.name
        assert not re.search(r"<script[^>]*>alert", path.read_text(encoding="utf-8")), path.name


def test_the_chooser_is_a_plain_table_until_the_script_runs(
    built: Path, pages: dict[Path, Page]
) -> None:
    home = (built / "index.html").read_text(encoding="utf-8")
    body = home[home.index("<tbody>") : home.index("</tbody>")]
    assert body.count("<tr ") == len(seeds().papers)
    assert body.count("<td ") == 6 * len(seeds().papers)
    assert 'class="chooser-controls" hidden' in home
    assert "assets/chooser.js" in home
    script = (built / "assets" / "chooser.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|eval\(|https?:", script)
    for facet in re.findall(r'\["(\w+)", "', script):
        assert f"data-{facet}=" in home


def test_exports_lie_where_the_data_page_says(built: Path, pages: dict[Path, Page]) -> None:
    package = json.loads((built / "data" / "datapackage.json").read_text(encoding="utf-8"))
    links = set(pages[built / "data.html"].links)
    for resource in package["resources"]:
        assert f"data/{resource['path']}" in links
        assert (built / "data" / resource["path"]).stat().st_size == resource["bytes"]


def test_issue_forms_are_sound_and_take_the_prefilled_entry() -> None:
    forms = {
        path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    }
    config = forms.pop("config.yml")
    assert config == {"blank_issues_enabled": True}
    assert set(forms) == {
        *("add-paper.yml", "fix-entry.yml"),
        *("dispute-number.yml", "report-reproduction.yml"),
    }
    for name, form in forms.items():
        assert {"name", "description", "body"} <= set(form), name
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids), name
        for field in form["body"]:
            assert field["type"] in {"input", "textarea", "dropdown"}, name
            assert field["attributes"]["label"], name


def test_links_to_issue_forms_fill_in_fields_that_are_there(pages: dict[Path, Page]) -> None:
    forms = ROOT / ".github" / "ISSUE_TEMPLATE"
    seen = set()
    for page in pages.values():
        for href in page.links:
            parts = urlsplit(href)
            if not parts.path.endswith("/issues/new"):
                continue
            query = dict(parse_qsl(parts.query, strict_parsing=True))
            form = yaml.safe_load((forms / query.pop("template")).read_text(encoding="utf-8"))
            assert query.pop("title").startswith(form["title"].strip())
            assert query and set(query) <= {field["id"] for field in form["body"]}
            seen.add(form["name"])
    assert len(seen) == 3


def test_the_repository_is_named_alike_wherever_it_must_be() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == SETTINGS["extra"]["repository"]
    assert citation["license"] == "MIT"
    assert "the contributors" in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[2]
