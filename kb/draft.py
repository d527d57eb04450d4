"""From what the services say about a work to an entry that fits the schema."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kb.fetch import Work, title_likeness
from kb.load import Corpus
from kb.schema import Family, Section, title_key

COPIED_WORDS = 8
"""So many words in a row that also stand in the abstract are not own words."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A word of a vocabulary, and the words of title or abstract that suggested it."""

    field: str
    value: str
    because: str


# Field, value, pattern. Families come in order of preference: the first that fits is taken.
_KEYWORDS: tuple[tuple[str, str, str], ...] = (
    ("family", "survey", r"\b(?:a )?(?:comprehensive |systematic )?survey\b"),
    (
        "family",
        "safety-pruning",
        r"concept (?:erasure|removal)|unlearning|memori[sz]ation|backdoor",
    ),
    ("family", "text-encoder-pruning", r"text[- ]encoder (?:pruning|compression)"),
    ("family", "lottery-ticket", r"lottery ticket|winning ticket"),
    ("family", "n-m-sparsity", r"\b(?:n:m|2:4|1:4|4:8)\b|semi-structured (?:sparsity|pruning)"),
    ("family", "sparse-training", r"sparse(?:-to-sparse)? training|dynamic sparse"),
    ("family", "dense-to-sparse-moe", r"dense[- ]to[- ](?:sparse )?(?:moe|mixture)|moefication"),
    ("family", "timestep-aware-pruning", r"time-?step[- ](?:aware|wise|dependent) (?:prun|spars)"),
    ("family", "attention-pruning", r"(?:attention|head)[- ](?:head )?(?:pruning|removal)"),
    (
        "family",
        "layer-pruning",
        r"(?:layer|block|depth)[- ](?:wise )?(?:pruning|removal|dropping)|"
        r"(?:remov|prun|drop)\w* (?:whole |entire |redundant )?(?:layers|blocks)|shallow",
    ),
    ("family", "weight-pruning", r"\bprun(?:e|es|ed|ing)\b|\bsparsif"),
    ("family", "sparse-attention", r"sparse attention"),
    ("family", "token-reduction", r"token (?:merging|pruning|reduction|dropping|downsampling)"),
    ("family", "caching", r"\bcach(?:e|es|ed|ing)\b"),
    ("family", "quantization", r"\bquanti[sz]|\blow-bit\b|\b\d-bit\b"),
    ("family", "dynamic-routing", r"\brouter\b|mixture[- ]of[- ]experts"),
    ("family", "dynamic-skipping", r"early exit|skip(?:s|ping)? (?:layers|blocks|computation)"),
    ("family", "low-rank", r"low-rank|singular value"),
    ("family", "nas", r"neural architecture search"),
    (
        "family",
        "step-distillation",
        r"(?:few|one|single)[- ]step|consistency (?:model|distillation)",
    ),
    ("family", "architecture-compression", r"\bcompress(?:ed|ion|ing)?\b|lightweight|on-device"),
    ("family", "parameter-distillation", r"knowledge distillation|student (?:model|network)"),
    ("family", "sampler", r"\bsolver\b|fast sampl"),
    ("family", "efficient-architecture", r"linear attention|efficient (?:architecture|backbone)"),
    ("family", "system", r"\bparalleli[sz]|serving|compiler"),
    ("granularity", "unstructured", r"\bunstructured\b"),
    ("granularity", "semi-structured", r"semi-structured|\b2:4\b|\bn:m\b"),
    ("granularity", "structured", r"(?<!un)(?<!semi-)\bstructur(?:ed|al) (?:prun|spars)"),
    ("granularity", "structured", r"\b(?:channel|layer|block|head|depth|width)[- ]prun"),
    ("units", "n:m", r"\b2:4\b|\bn:m\b"),
    ("units", "channel", r"\bchannels?\b|\bfilters?\b"),
    ("units", "head", r"\battention heads?\b|\bhead pruning\b"),
    ("units", "layer", r"\blayers\b|\blayer[- ](?:pruning|removal|wise)"),
    ("units", "block", r"\bblocks\b|\bblock[- ](?:pruning|removal)"),
    ("units", "token", r"\btoken (?:merging|pruning|reduction|dropping)"),
    ("criteria", "magnitude", r"\bmagnitude\b"),
    ("criteria", "taylor", r"\btaylor\b"),
    ("criteria", "second-order", r"\bhessian\b|\bfisher\b|second-order"),
    (
        "criteria",
        "learned-mask",
        r"(?:learn|differentiab|optimi[sz])\w* (?:\w+ )?(?:mask|gate)s?\b",
    ),
    ("criteria", "sensitivity", r"\bsensitivity\b"),
    ("criteria", "similarity", r"\bsimilarity\b"),
    ("criteria", "evolutionary", r"\bevolutionary\b|\bgenetic\b"),
    ("stage", "training-free", r"training-free|without (?:any )?(?:re)?training|tuning-free"),
    ("stage", "post-training", r"fine-?tun|distill|retrain|post-training"),
    ("stage", "from-scratch", r"(?:train\w* )?from scratch"),
    ("recovery", "fine-tuning", r"fine-?tun"),
    ("recovery", "parameter-efficient", r"\blora\b"),
    ("recovery", "feature-distillation", r"feature(?:-level)? distill"),
    ("recovery", "output-distillation", r"(?:knowledge|output|logit) distill"),
    ("architectures", "unet", r"\bu-?net\b"),
    ("architectures", "mmdit", r"\bmm-?dit\b|\bflux\b|\bsd ?3\b|stable diffusion 3"),
    ("architectures", "dit", r"\bdits?\b|diffusion transformers?"),
    ("architectures", "moe", r"mixture[- ]of[- ]experts|\bmoe\b"),
    ("tasks", "text-to-image", r"text-to-image|stable diffusion|\bsdxl\b|\bflux\b"),
    ("tasks", "text-to-video", r"text-to-video|video (?:generation|diffusion)"),
    ("tasks", "class-conditional", r"class-conditional|\bimagenet\b"),
    ("tasks", "unconditional", r"\bunconditional\b"),
    ("tasks", "super-resolution", r"super-resolution"),
    ("tasks", "image-editing", r"image editing"),
    ("tasks", "concept-erasure", r"concept (?:erasure|removal)|unlearning"),
    ("tasks", "text-to-audio", r"text-to-(?:audio|speech|music)"),
    ("modalities", "image", r"\bimages?\b|text-to-image"),
    ("modalities", "video", r"\bvideos?\b"),
    ("modalities", "audio", r"\baudio\b|\bspeech\b"),
    ("modalities", "3d", r"\b3d\b"),
)

_COMPLEMENTARY = frozenset(
    {
        Family.QUANTIZATION,
        Family.STEP_DISTILLATION,
        Family.PARAMETER_DISTILLATION,
        Family.SAMPLER,
        Family.CACHING,
        Family.TOKEN_REDUCTION,
        Family.SPARSE_ATTENTION,
        Family.SPARSE_INFERENCE,
        Family.EFFICIENT_ARCHITECTURE,
        Family.SYSTEM,
    }
)


def suggest(title: str, abstract: str) -> tuple[Suggestion, ...]:
    """Vocabulary that the words of title and abstract suggest; the title's words count first.

    At most one family. A person checks the rest.
    """
    found: dict[tuple[str, str], Suggestion] = {}
    for where in (title, f"{title}. {abstract}"):
        for name, value, pattern in _KEYWORDS:
            if name == "family" and any(key[0] == "family" for key in found):
                continue
            if match := re.search(pattern, where, re.IGNORECASE):
                word = re.match(r"\w*", where[match.end() :])
                because = match.group() + (word.group() if word else "")
                found.setdefault((name, value), Suggestion(name, value, because))
    return tuple(found.values())


def entry_id(title: str, taken: Collection[str]) -> str:
    """A free id from a title: its name before the colon, or its first telling words."""
    name, colon, _ = title.partition(":")
    words = title_key(name).split()
    if not colon or len(words) > 4:
        words = [w for w in title_key(title).split() if w not in _SMALL_WORDS][:4]
    slug = "-".join(words)[:50].strip("-") or "paper"
    candidates = [slug, *(f"{slug}-{i}" for i in range(2, 100))]
    return next(c for c in candidates if c not in taken)


_SMALL_WORDS = frozenset(
    re.findall(r"\w+", "a an and as at by for from in of on or the to via with")
)


def draft(
    works: Sequence[Work],
    suggestions: Iterable[Suggestion],
    *,
    id: str,
    today: str,
    summary: str | None,
    section: Section | None = None,
    family: Family | None = None,
) -> dict[str, Any]:
    """An entry as plain data; without `summary` it lacks that one key.

    Args:
        works: Records of one work; the first is the one asked for, later ones know of publication.
        suggestions: Tags; `section` and `family` go before them.
        id: Name of the entry.
        today: Date of curation, `2026-01-31`.
        summary: Own words.
        section: Half of the list; follows from the family when left out.
        family: Group; without one here or among the suggestions the key is missing.
    """
    first = works[0]
    tags: dict[str, list[str]] = {}
    for suggestion in suggestions:
        tags.setdefault(suggestion.field, []).append(suggestion.value)
    chosen = family or (Family(tags["family"][0]) if "family" in tags else None)  # type: ignore[call-arg]
    half = section or (Section.COMPLEMENTARY if chosen in _COMPLEMENTARY else Section.PRUNING)
    published = next((w for w in reversed(works) if _is_published(w)), first)
    titles = dict.fromkeys(w.title for w in (published, *works))
    title, *others = titles
    other_titles = [t for t in others if title_key(t) != title_key(title)]
    arxiv = _known(works, "arxiv")
    entry: dict[str, Any] = {
        "id": id,
        "section": half.value,
        "family": chosen.value if chosen else None,
        "title": title,
        "alternate_titles": other_titles,
        "authors": list(max(works, key=lambda w: len(w.authors)).authors),
        "year": first.year,
        "arxiv": arxiv,
        "first_posted": _known(works, "first_posted"),
        "doi": _known(works, "doi"),
        "openreview": _known(works, "openreview"),
        "dblp": _known(works, "dblp"),
        "publication": dict(published.publication)
        or {"type": "submission", "note": "The source does not say whether it was accepted."},
        **{name: values for name, values in tags.items() if name != "family"},
        "summary": summary,
        "evidence": "abstract" if any(w.abstract for w in works) else "list",
        "curation": {
            "depth": "metadata",
            "date": today,
            "note": "Tags were suggested by words of title and abstract; nobody checked them yet.",
        },
        "sources": list(dict.fromkeys(w.source for w in works)),
    }
    return {key: value for key, value in entry.items() if value not in (None, [], "")}


def _is_published(work: Work) -> bool:
    return work.publication.get("type") not in (None, "preprint", "submission")


def _known(works: Sequence[Work], name: str) -> Any:
    return next((v for w in works if (v := getattr(w, name)) is not None), None)


@dataclass(frozen=True, slots=True)
class Twin:
    """An entry that may be the same work."""

    id: str
    line: int
    reason: str
    certain: bool
    """Whether an identifier or the whole title agrees."""


def twins(entry: Mapping[str, Any], corpus: Corpus) -> tuple[Twin, ...]:
    """Entries that share an identifier with `entry`, or nearly its title."""
    found = []
    titles = [entry["title"], *entry.get("alternate_titles", ())]
    for other in corpus.papers:
        record = other.record
        same = [n for n in ("arxiv", "doi", "openreview", "dblp") if _equal(entry, record, n)]
        likeness = max(
            title_likeness(a, b) for a in titles for b in (record.title, *record.alternate_titles)
        )
        if same:
            reason, certain = f"the same {same[0]}", True
        elif likeness == 1.0:
            reason, certain = "the same title", True
        elif likeness >= 0.85:
            reason, certain = f"nearly its title: {record.title!r}", False
        else:
            continue
        found.append(Twin(record.id, corpus.line(other), reason, certain))
    return tuple(found)


def _equal(entry: Mapping[str, Any], record: Any, name: str) -> bool:
    mine, theirs = entry.get(name), getattr(record, name)
    if name == "doi" and mine and theirs:
        return bool(mine.casefold() == theirs.casefold())
    return mine is not None and mine == theirs


def copied(summary: str, abstract: str) -> str | None:
    """The first `COPIED_WORDS` words in a row that both texts share, or None."""
    ours, theirs = title_key(summary).split(), title_key(abstract).split()
    runs = {tuple(theirs[i : i + COPIED_WORDS]) for i in range(len(theirs) - COPIED_WORDS + 1)}
    for i in range(len(ours) - COPIED_WORDS + 1):
        if (run := tuple(ours[i : i + COPIED_WORDS])) in runs:
            return " ".join(run)
    return None
