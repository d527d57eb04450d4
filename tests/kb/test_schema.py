"""The schema's own consistency, and the committed JSON Schema."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from kb.schema import (
    RECORDS,
    VOCABULARIES,
    Code,
    Literature,
    Measure,
    Metric,
    Paper,
    json_schema,
    title_key,
)

ROOT = Path(__file__).parents[2]
DEFINITIONS = json_schema()["$defs"]


def test_committed_json_schema_is_current():
    text = (ROOT / "schema" / "papers.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == json_schema()


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda v: v.__name__)
def test_every_word_is_defined_once(vocabulary):
    definitions = [term.definition for term in vocabulary]
    assert all(text.endswith(".") and len(text) > 4 for text in definitions)
    assert len(set(definitions)) == len(definitions)
    assert vocabulary.__doc__


def test_vocabularies_of_the_records_are_all_listed():
    listed = {v.__name__ for v in VOCABULARIES} | {"Metric"}
    used = {name for name, part in DEFINITIONS.items() if "enum" in part}
    assert used <= listed


def test_editors_see_a_definition_for_every_word():
    for name, part in DEFINITIONS.items():
        if "enum" in part:
            assert len(part["enumDescriptions"]) == len(part["enum"]), name


def test_every_field_is_documented():
    for name, part in DEFINITIONS.items():
        for field, description in part.get("properties", {}).items():
            assert description.get("description"), f"{name}.{field}"


@pytest.mark.parametrize("metric", list(Metric))
def test_metric_bounds_and_units_agree(metric):
    assert metric.units[metric.unit] == 1
    assert all(factor > 0 for factor in metric.units.values())
    assert metric.low is None or metric.high is None or metric.low < metric.high


def test_measure_converts_to_the_canonical_unit():
    measure = Measure(metric="params", value=2.1, unit="B", dense=2.6)
    assert measure.canonical == pytest.approx(2100)
    assert measure.canonical_dense == pytest.approx(2600)
    assert Measure(metric="fid", value=3.0).canonical_dense is None


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "fid", "value": "3"},
        {"metric": "fid", "value": True},
        {"metric": "fid", "value": float("nan")},
        {"metric": "latency", "value": 1.0, "unit": "hours"},
        {"metric": "speedup", "value": 2.0, "upper": 1.0},
        {"metric": "fid", "value": 3.0, "spread": -0.1},
    ],
)
def test_measure_refuses(fields):
    with pytest.raises(ValidationError):
        Measure(**fields)


def test_code_has_a_url_unless_none_was_found():
    assert Code(status="none-found").url is None
    for fields in ({"status": "released"}, {"status": "none-found", "url": "https://a.org/b"}):
        with pytest.raises(ValidationError, match="none-found"):
            Code(**fields)


def test_records_are_immutable_and_closed():
    def models(part: type[BaseModel]):
        yield part
        for field in part.model_fields.values():
            for inner in getattr(field.annotation, "__args__", (field.annotation,)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from models(inner)

    for record in (Literature, *RECORDS.values()):
        for model in models(record):
            assert model.model_config["frozen"]
            assert model.model_config["extra"] == "forbid"


def test_urls_and_date_are_derived_from_identifiers():
    paper = Paper(
        id="a",
        section="pruning",
        family="weight-pruning",
        title="A title",
        arxiv="2305.10924",
        doi="10.1145/1.2",
        openreview="t9m14jybcI",
        dblp="conf/nips/Fang0W23",
        hub=("owner/model",),
        publication={"type": "preprint"},
        summary="Removes channels that matter little and trains the rest for a while.",
        evidence="list",
        curation={"depth": "metadata", "date": "2026-11-22"},
        sources=("arxiv:2305.10924",),
    )
    assert paper.url == paper.arxiv_url == "https://arxiv.org/abs/2305.10924"
    assert paper.doi_url == "https://doi.org/10.1145/1.2"
    assert paper.openreview_url == "https://openreview.net/forum?id=t9m14jybcI"
    assert paper.dblp_url == "https://dblp.org/rec/conf/nips/Fang0W23"
    assert paper.hub_urls == ("https://huggingface.co/owner/model",)
    assert paper.posted == (2023, 5)
    assert paper.model_copy(update={"arxiv": None}).url == "https://doi.org/10.1145/1.2"


def test_title_key_ignores_case_and_punctuation():
    assert title_key("LAPTOP-Diff: Layer Pruning!") == title_key("laptop diff  layer pruning")
    assert title_key("One") != title_key("Two")
