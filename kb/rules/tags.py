"""Vocabulary terms that must fit each other, and claims of depth that must fit the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from kb.load import Corpus
from kb.rules.registry import Finding, rule
from kb.schema import (
    Depth,
    Evidence,
    Family,
    Granularity,
    Kind,
    Modality,
    Recovery,
    Section,
    Stage,
    Task,
    Unit,
)

_REMOVES_PARTS = frozenset(
    {
        Family.WEIGHT_PRUNING,
        Family.LAYER_PRUNING,
        Family.N_M_SPARSITY,
        Family.ATTENTION_PRUNING,
        Family.ARCHITECTURE_COMPRESSION,
        Family.TEXT_ENCODER_PRUNING,
        Family.TIMESTEP_AWARE_PRUNING,
        Family.DYNAMIC_SKIPPING,
        Family.DYNAMIC_ROUTING,
        Family.LOTTERY_TICKET,
        Family.SPARSE_TRAINING,
    }
)


@rule("pruning-tags", "warning", "Readers look for pruning papers by what is removed.")
def pruning_tags(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        # Who read a title in a list cannot know what is removed.
        known = record.curation.depth is not Depth.METADATA and record.kind is Kind.PAPER
        if record.section is not Section.PRUNING or record.family not in _REMOVES_PARTS:
            continue
        missing = [name for name in ("granularity", "units") if not getattr(record, name)]
        if known and missing:
            yield Finding(
                entry,
                ("family",),
                f"{record.family.value} without {' and '.join(missing)}",
                "add what the text names",
            )


_COMPLEMENTARY = frozenset(
    {
        Family.QUANTIZATION,
        Family.STEP_DISTILLATION,
        Family.SAMPLER,
        Family.CACHING,
        Family.SYSTEM,
        Family.SPARSE_INFERENCE,
    }
)
_PRUNING = _REMOVES_PARTS - {Family.ATTENTION_PRUNING, Family.DYNAMIC_SKIPPING}


@rule("section-family", "error", "The two halves of the list are divided by what a work does.")
def section_family(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        section, family = entry.record.section, entry.record.family
        wrong = _COMPLEMENTARY if section is Section.PRUNING else _PRUNING
        if family in wrong:
            yield Finding(
                entry,
                ("section",),
                f"{family.value} does not belong to {section.value}",
                "choose the other section, or the family that fits",
            )


_SHRINKS = frozenset({Granularity.STRUCTURED, Granularity.DYNAMIC})
_SHAPES: Mapping[Unit, frozenset[Granularity]] = {
    Unit.WEIGHT: frozenset({Granularity.UNSTRUCTURED, Granularity.SEMI_STRUCTURED}),
    Unit.N_M: frozenset({Granularity.SEMI_STRUCTURED}),
    Unit.CHANNEL: _SHRINKS,
    Unit.NEURON: _SHRINKS,
    Unit.HEAD: _SHRINKS,
    Unit.WIDTH: _SHRINKS,
    Unit.LAYER: _SHRINKS,
    Unit.BLOCK: _SHRINKS,
    Unit.STAGE: _SHRINKS,
    Unit.DEPTH: _SHRINKS,
}


@rule("unit-granularity", "error", "The smallest thing removed decides the shape of the hole.")
def unit_granularity(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        shapes = set(entry.record.granularity)
        for index, unit in enumerate(entry.record.units):
            fitting = _SHAPES.get(unit)
            if shapes and fitting is not None and not shapes & fitting:
                yield Finding(
                    entry,
                    ("units", index),
                    f"unit {unit.value} with granularity {', '.join(sorted(shapes))}",
                    f"add {' or '.join(sorted(fitting))} to granularity, or another unit",
                )


_WHOLE = frozenset({Unit.LAYER, Unit.BLOCK, Unit.DEPTH, Unit.STAGE, Unit.ATTENTION})
_FAMILY_UNITS: Mapping[Family, frozenset[Unit]] = {
    Family.N_M_SPARSITY: frozenset({Unit.N_M}),
    Family.LAYER_PRUNING: _WHOLE | {Unit.OPERATOR, Unit.MODULE},
    Family.ATTENTION_PRUNING: _WHOLE | {Unit.HEAD, Unit.TOKEN, Unit.OPERATOR},
    Family.TOKEN_REDUCTION: frozenset({Unit.TOKEN}),
    Family.LOW_RANK: frozenset({Unit.RANK}),
}


@rule("family-unit", "warning", "A family is named after what it removes.")
def family_unit(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        units, expected = set(entry.record.units), _FAMILY_UNITS.get(entry.record.family)
        if units and expected is not None and not units & expected:
            yield Finding(
                entry,
                ("units",),
                f"{entry.record.family.value} without any of {', '.join(sorted(expected))}",
                "add the unit, or choose another family",
            )


_MODALITY: Mapping[Task, Modality] = {
    Task.TEXT_TO_IMAGE: Modality.IMAGE,
    Task.IMAGE_TO_IMAGE: Modality.IMAGE,
    Task.IMAGE_EDITING: Modality.IMAGE,
    Task.TEXT_TO_VIDEO: Modality.VIDEO,
    Task.IMAGE_TO_VIDEO: Modality.VIDEO,
    Task.IMAGE_TO_3D: Modality.THREE_D,
    Task.TEXT_TO_AUDIO: Modality.AUDIO,
    Task.TEXT_GENERATION: Modality.TEXT,
    Task.POLICY: Modality.ACTION,
}


@rule("task-modality", "error", "Who draws images generates images; filters must agree.")
def task_modality(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        modalities = entry.record.modalities
        for index, task in enumerate(entry.record.tasks):
            expected = _MODALITY.get(task)
            if modalities and expected is not None and expected not in modalities:
                yield Finding(
                    entry,
                    ("tasks", index),
                    f"{task.value} without modality {expected.value}",
                    f"add {expected.value} to modalities, or remove the task",
                )


_TRAINS = frozenset(Recovery) - {Recovery.NONE, Recovery.COMPENSATION}


@rule("stage-recovery", "error", "What fine-tunes or distils is not training-free.")
def stage_recovery(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        trained = [r for r in entry.record.recovery if r in _TRAINS]
        if entry.record.stage == (Stage.TRAINING_FREE,) and trained:
            yield Finding(
                entry,
                ("stage",),
                f"training-free, but recovery is {trained[0].value}",
                "add post-training to stage, or remove the recovery",
            )


@rule("none-with-others", "error", "None beside something else leaves open which is meant.")
def none_with_others(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        # Two variants of one method, one of them without training, are told by their stages.
        if len(record.calibration) > 1 and any(c.value == "none" for c in record.calibration):
            yield Finding(
                entry, ("calibration",), "none stands beside other data", "remove one of them"
            )
        if (
            len(record.recovery) > 1
            and Recovery.NONE in record.recovery
            and Stage.TRAINING_FREE not in record.stage
        ):
            yield Finding(
                entry,
                ("recovery",),
                "none stands beside another recovery",
                "remove one, or add training-free to stage for the variant without training",
            )


_LISTS = (
    "arxiv_versions",
    "hub",
    "granularity",
    "units",
    "criteria",
    "stage",
    "recovery",
    "calibration",
    "architectures",
    "tasks",
    "modalities",
    "base_models",
    "not_reported",
    "notes",
    "sources",
    "papers",
    "traps",
)


@rule("repeated-item", "error", "A term said twice is counted twice.")
def repeated_item(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        record = entry.record
        for name in _LISTS:
            values = getattr(record, name, ())
            if len(values) < 2 or len(set(values)) == len(values):
                continue
            first: dict[object, int] = {}
            index = next(i for i, value in enumerate(values) if first.setdefault(value, i) != i)
            yield Finding(entry, (name, index), f"{values[index]} stands here twice", "remove one")


# --------------------------------------------------------------------------- depth and evidence


@rule("depth-results", "error", "Results that were transcribed stand in the entry.")
def depth_results(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        if record.curation.depth is Depth.RESULTS_TRANSCRIBED and not record.results:
            yield Finding(
                entry,
                ("curation", "depth"),
                "results-transcribed without results",
                "add the rows, or a lesser depth",
            )


_READ: Mapping[Depth, frozenset[Evidence]] = {
    Depth.PAPER_READ: frozenset({Evidence.FULLTEXT, Evidence.FULLTEXT_EXCERPT}),
    Depth.ABSTRACT_READ: frozenset(Evidence) - {Evidence.LIST, Evidence.CITATION},
}


@rule("depth-evidence", "error", "Depth claims no more reading than the evidence admits.")
def depth_evidence(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        depth, evidence = entry.record.curation.depth, entry.record.evidence
        if evidence not in _READ.get(depth, frozenset({evidence})):
            yield Finding(
                entry,
                ("curation", "depth"),
                f"{depth.value}, but the strongest text read is {evidence.value}",
                "correct depth or evidence",
            )


METHODS = Path(__file__).parents[2] / "methods"
"""Where a reimplementation stands, named after its entry."""


@rule("depth-reimplemented", "error", "A reimplementation is a file in methods/, or there is none.")
def depth_reimplemented(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        name = f"{record.id.replace('-', '_')}.py"
        if record.curation.depth is Depth.REIMPLEMENTED and not (METHODS / name).is_file():
            yield Finding(
                entry,
                ("curation", "depth"),
                f"reimplemented, but there is no methods/{name}",
                "give the depth that was reached",
            )


def _from_somewhere(source: str) -> str:
    """The kind of place a source names: github, arxiv, huggingface, https ..."""
    kind, _, rest = source.partition(":")
    if kind == "https":
        host = rest.removeprefix("//").partition("/")[0]
        return {"github.com": "github", "huggingface.co": "huggingface"}.get(host, "https")
    return kind


_SHOWN_BY: Mapping[Evidence, frozenset[str]] = {
    Evidence.FULLTEXT: frozenset({"arxiv", "doi", "openreview", "https", "github", "huggingface"}),
    Evidence.README: frozenset({"github", "https"}),
    Evidence.MODEL_CARD: frozenset({"huggingface", "https", "github"}),
}


@rule("evidence-source", "warning", "The text that was read is among the sources.")
def evidence_source(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        expected = _SHOWN_BY.get(record.evidence)
        if expected is None:
            continue
        sources = (*record.sources, *(row.source.document for row in record.results))
        if not any(_from_somewhere(source) in expected for source in sources):
            yield Finding(
                entry,
                ("sources",),
                f"evidence {record.evidence.value}, but no source of that kind",
                "add where it was read",
            )
