"""What an entry of papers.yaml may hold: closed vocabularies and typed records.

This file is the single definition: the validator, the JSON Schema for editors, the glossary and the
field reference are all derived from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StrictInt,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

SCHEMA_VERSION = "1.0"

# --------------------------------------------------------------------------- vocabularies


class Term(StrEnum):
    """One word of a closed vocabulary together with what it means here."""

    definition: str

    def __new__(cls, value: str, definition: str) -> Self:
        term = str.__new__(cls, value)
        term._value_ = value
        term.definition = definition
        return term

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        schema["description"] = (cls.__doc__ or "").strip().splitlines()[0]
        # Read by the YAML and JSON language servers; other validators ignore the keyword.
        schema["enumDescriptions"] = [term.definition for term in cls]
        return schema


class Section(Term):
    """Which half of the list a paper stands in."""

    PRUNING = "pruning", "Pruning, sparsity or architecture compression is the paper's subject."
    COMPLEMENTARY = "complementary", "Another way to save cost that can be combined with pruning."


class Kind(Term):
    """What sort of work an entry describes."""

    PAPER = "paper", "A paper, published or preprint."
    MODEL_RELEASE = "model-release", "Weights with a model card and no paper."
    SOFTWARE = "software", "A program that is itself the contribution, without a paper."


class Family(Term):
    """The group an entry is listed under; one per entry."""

    WEIGHT_PRUNING = "weight-pruning", "Removes or zeroes weights, channels or neurons by a score."
    LAYER_PRUNING = "layer-pruning", "Removes whole layers or blocks for all steps."
    N_M_SPARSITY = "n-m-sparsity", "Keeps n of every m consecutive weights."
    ATTENTION_PRUNING = "attention-pruning", "Removes attention heads, maps or cross-attention."
    ARCHITECTURE_COMPRESSION = (
        "architecture-compression",
        "Redesigns a trained network by hand or search into a smaller one, then distils.",
    )
    TEXT_ENCODER_PRUNING = "text-encoder-pruning", "Shrinks the text encoder, not the denoiser."
    TIMESTEP_AWARE_PRUNING = (
        "timestep-aware-pruning",
        "Uses different sub-networks at different denoising steps.",
    )
    DYNAMIC_SKIPPING = "dynamic-skipping", "Decides while sampling which parts to skip."
    DYNAMIC_ROUTING = "dynamic-routing", "A learnt router chooses parts by input or step."
    DENSE_TO_SPARSE_MOE = "dense-to-sparse-moe", "Turns a dense network into sparse experts."
    LOTTERY_TICKET = "lottery-ticket", "Looks for sub-networks that train well from their start."
    SPARSE_TRAINING = "sparse-training", "Trains with a sparse network from the beginning."
    LOW_RANK = "low-rank", "Replaces weight matrices by products of thinner ones."
    SAFETY_PRUNING = "safety-pruning", "Prunes to remove a concept, a memory or a backdoor."
    RECOVERY = "recovery", "Restores the quality of an already pruned model."
    NAS = "nas", "Searches for an architecture."
    ANALYSIS = "analysis", "Measures redundancy or the effect of pruning; no new method."
    SURVEY = "survey", "Reviews other work."
    QUANTIZATION = "quantization", "Stores or computes with fewer bits."
    STEP_DISTILLATION = "step-distillation", "Trains a student that needs fewer steps."
    PARAMETER_DISTILLATION = "parameter-distillation", "Trains a smaller student from a teacher."
    SAMPLER = "sampler", "A solver or schedule that needs fewer denoiser calls; no training."
    CACHING = "caching", "Reuses features of earlier denoising steps."
    TOKEN_REDUCTION = "token-reduction", "Merges, drops or prunes tokens."
    SPARSE_ATTENTION = "sparse-attention", "Computes only part of the attention matrix."
    SPARSE_INFERENCE = "sparse-inference", "Recomputes only the edited region of an image."
    EFFICIENT_ARCHITECTURE = "efficient-architecture", "A cheaper network designed from scratch."
    SYSTEM = "system", "Parallel or compiled execution; the network stays the same."
    ADJACENT_FLOW = "adjacent-flow", "Pruning of flows or neural ODEs, close to diffusion."
    DATA_PRUNING = "data-pruning", "Selects training data; does not shrink the network."


class Granularity(Term):
    """The shape of what is removed."""

    UNSTRUCTURED = "unstructured", "Single weights anywhere; shapes stay, speed needs sparse code."
    SEMI_STRUCTURED = "semi-structured", "A fixed pattern such as 2:4 that some hardware runs fast."
    STRUCTURED = "structured", "Whole channels, heads, layers or blocks; tensors really shrink."
    DYNAMIC = "dynamic", "Parts are skipped per input or step; the stored model keeps its size."


class Unit(Term):
    """The smallest thing that is removed at once."""

    WEIGHT = "weight", "One entry of a weight tensor."
    N_M = "n:m", "A run of m weights of which n are kept."
    CHANNEL = "channel", "A channel (filter) of a convolution with everything tied to it."
    NEURON = "neuron", "A hidden unit of a feed-forward layer."
    HEAD = "head", "An attention head."
    WIDTH = "width", "Embedding or stream width of a whole network."
    ATTENTION = "attention", "A whole attention operation (self or cross)."
    OPERATOR = "operator", "Any single operation of the graph."
    LAYER = "layer", "One residual, attention or feed-forward layer."
    BLOCK = "block", "A residual or transformer block of several layers."
    STAGE = "stage", "A whole resolution level of a U-Net."
    DEPTH = "depth", "A contiguous run of layers."
    TOKEN = "token", "One position of a sequence or feature map."
    TIMESTEP = "timestep", "A denoising step, or a part of the network at one step."
    EXPERT = "expert", "One expert of a mixture."
    RANK = "rank", "A direction of a low-rank factorisation."
    MODULE = "module", "A component of the pipeline such as an encoder or a decoder."


class Criterion(Term):
    """How it is decided what goes."""

    MAGNITUDE = "magnitude", "Size of the weights."
    TAYLOR = "taylor", "First-order estimate of the change of a loss."
    SECOND_ORDER = "second-order", "Curvature (Hessian or Fisher) estimate of the change."
    ACTIVATION = "activation", "Size or statistics of activations, alone or times weights."
    LEARNED_MASK = "learned-mask", "Gates or masks optimised by gradient descent."
    LEARNED_ROUTER = "learned-router", "A small network decides from the input or step."
    SENSITIVITY = "sensitivity", "Measured damage when the unit alone is removed."
    SIMILARITY = "similarity", "Likeness of a unit's input and output, or of two units."
    REGULARIZATION = "regularization", "A penalty in training drives units to zero."
    EVOLUTIONARY = "evolutionary", "Evolutionary or annealed search over configurations."
    REINFORCEMENT = "reinforcement", "A policy trained by reward."
    LATENCY_AWARE = "latency-aware", "Measured time on a device takes part in the score."
    MANUAL = "manual", "A rule or list chosen by hand."
    RANDOM = "random", "Chance."


class Stage(Term):
    """When in a model's life the technique acts."""

    TRAINING_FREE = "training-free", "After training, no gradient step on the weights."
    POST_TRAINING = "post-training", "After training, followed by fine-tuning or distillation."
    DURING_TRAINING = "during-training", "While the model is trained."
    FROM_SCRATCH = "from-scratch", "The smaller network is trained from random weights."
    DYNAMIC_INFERENCE = "dynamic-inference", "Decides while sampling."


class Recovery(Term):
    """How quality is restored after the cut."""

    NONE = "none", "Nothing is done."
    COMPENSATION = "compensation", "Closed-form update of the weights that remain."
    FINE_TUNING = "fine-tuning", "Training on the original loss."
    PARAMETER_EFFICIENT = "parameter-efficient", "LoRA or another small set of weights is trained."
    OUTPUT_DISTILLATION = "output-distillation", "Matching the outputs of the dense model."
    FEATURE_DISTILLATION = "feature-distillation", "Matching inner features of the dense model."
    STEP_DISTILLATION = "step-distillation", "Training for fewer sampling steps."
    ADVERSARIAL = "adversarial", "Training against a discriminator."
    REINFORCEMENT = "reinforcement", "Training on a reward."


class Architecture(Term):
    """The kind of network that is made smaller."""

    UNET = "unet", "Convolutional U-Net, with or without attention."
    DIT = "dit", "Diffusion transformer with one stream of tokens."
    MMDIT = "mmdit", "Transformer with joint attention of text and image streams."
    SIT = "sit", "Transformer trained with a flow or interpolant objective."
    UVIT = "uvit", "Transformer with long skip connections."
    VIDEO_UNET = "video-unet", "U-Net with temporal layers."
    VIDEO_DIT = "video-dit", "Diffusion transformer over space and time."
    LINEAR_DIT = "linear-dit", "Diffusion transformer with linear attention."
    MOE = "moe", "Mixture of experts."
    MAR = "mar", "Masked autoregressive model with a diffusion head."
    POLICY_TRANSFORMER = "policy-transformer", "Transformer that denoises robot actions."
    LANGUAGE_TRANSFORMER = "language-transformer", "Transformer that denoises text."
    TEXT_ENCODER = "text-encoder", "The text encoder of a pipeline."
    VAE = "vae", "The image or video autoencoder of a pipeline."
    GAN = "gan", "Generator of a generative adversarial network."
    NEURAL_ODE = "neural-ode", "Neural ODE or continuous normalising flow."


class Task(Term):
    """What the compressed model is used for."""

    UNCONDITIONAL = "unconditional", "Generation without a condition."
    CLASS_CONDITIONAL = "class-conditional", "Generation from a class label."
    TEXT_TO_IMAGE = "text-to-image", "Generation of an image from a text."
    IMAGE_TO_IMAGE = "image-to-image", "Translation of one image into another."
    IMAGE_EDITING = "image-editing", "Change of a part of an image."
    SUPER_RESOLUTION = "super-resolution", "Raising the resolution of an image."
    RESTORATION = "restoration", "Deblurring, denoising, inpainting."
    TEXT_TO_VIDEO = "text-to-video", "Generation of a video from a text."
    IMAGE_TO_VIDEO = "image-to-video", "Generation of a video from an image."
    IMAGE_TO_3D = "image-to-3d", "Generation of a shape from an image."
    TEXT_TO_AUDIO = "text-to-audio", "Generation of sound, speech or music."
    TEXT_GENERATION = "text-generation", "Generation of text."
    POLICY = "policy", "Choice of robot actions."
    CONCEPT_ERASURE = "concept-erasure", "Making a model unable to draw a concept."
    MEMORIZATION_MITIGATION = "memorization-mitigation", "Stopping the copying of training data."
    BACKDOOR_REMOVAL = "backdoor-removal", "Removing a planted trigger."
    ATTACK = "attack", "Undoing or circumventing a pruning-based protection."


class Modality(Term):
    """What is generated."""

    IMAGE = "image", "Still images."
    VIDEO = "video", "Moving images."
    AUDIO = "audio", "Sound."
    THREE_D = "3d", "Shapes or scenes."
    TEXT = "text", "Language."
    ACTION = "action", "Robot actions."
    OTHER = "other", "Anything else; the notes say what."


class Calibration(Term):
    """Which data the technique needs before any retraining."""

    NONE = "none", "None."
    NOISE = "noise", "Random latents alone."
    PROMPTS = "prompts", "Prompts without images."
    GENERATED = "generated", "Samples of the dense model."
    TRAINING_SUBSET = "training-subset", "A few real images or captions."
    TRAINING_SET = "training-set", "The full training set."


class CodeStatus(Term):
    """What a code link really leads to."""

    RELEASED = "released", "Code that does what the paper says."
    PARTIAL = "partial", "Some of the code; parts are missing or do not run."
    WEIGHTS_ONLY = "weights-only", "Weights or inference only."
    STUB = "stub", "A page that promises or describes, without code."
    EMPTY = "empty", "An empty repository."
    GONE = "gone", "It existed and cannot be reached any more."
    NONE_FOUND = "none-found", "Searched for and not found."
    UNCHECKED = "unchecked", "A source names the link; nobody here opened it."


class Evidence(Term):
    """The strongest text behind an entry, strongest first."""

    FULLTEXT = "fulltext", "The paper was read."
    FULLTEXT_EXCERPT = "fulltext-excerpt", "Parts of the paper were read."
    ABSTRACT = "abstract", "The abstract was read."
    README = "readme", "The repository's README was read."
    MODEL_CARD = "model-card", "A model card was read."
    LIST = "list", "Only entries of paper lists were read."
    CITATION = "citation", "Only citations in other papers were read."


class Depth(Term):
    """How much work went into an entry, least first."""

    METADATA = "metadata", "Title, authors, identifiers."
    ABSTRACT_READ = "abstract-read", "The abstract was read and the tags follow it."
    PAPER_READ = "paper-read", "The paper was read."
    RESULTS_TRANSCRIBED = "results-transcribed", "Its tables are in the claim ledger."
    REIMPLEMENTED = "reimplemented", "A method file in this repository implements it."


class PublicationType(Term):
    """How a work was published."""

    PREPRINT = "preprint", "Public, not reviewed."
    SUBMISSION = "submission", "Under review, withdrawn or of unknown decision."
    CONFERENCE = "conference", "Reviewed conference proceedings."
    WORKSHOP = "workshop", "A workshop, also one with proceedings."
    JOURNAL = "journal", "A reviewed journal."
    TECHNICAL_REPORT = "technical-report", "A report of an institution."
    RELEASE = "release", "A model or software release without a paper."


class Track(Term):
    """Where within a venue a work appeared."""

    MAIN = "main", "Main track."
    FINDINGS = "findings", "Findings or companion volume."
    WORKSHOP = "workshop", "A workshop of the venue."
    DATASETS = "datasets", "Datasets and benchmarks."
    DEMO = "demo", "Demonstrations."
    OTHER = "other", "Another track; the note says which."


class RelationType(Term):
    """How one work stands to another."""

    EXTENDS = "extends", "Builds on the other's method."
    COMPARES_WITH = "compares-with", "Prints its own numbers for the other's method."
    FOLLOW_UP = "same-authors-followup", "Later work that shares authors."
    CONTRADICTS = "contradicts", "Reports something that disagrees with the other."
    USES = "uses", "Applies the other unchanged."
    COMBINES_WITH = "combines-with", "Was run together with the other."
    IMPLEMENTS = "implements", "Is code for the other."
    SURVEYS = "surveys", "Reviews the other."


class SparsityKind(Term):
    """What the stated sparsity is a fraction of."""

    ALL_WEIGHTS = "all-weights", "Fraction of all weights of the denoiser that are gone or zero."
    PRUNABLE_UNITS = "prunable-units", "Fraction of the units the method may remove."
    TARGETED_LAYERS = "targeted-layers", "Fraction of weights within the layers it touches."
    MACS = "macs", "Fraction of multiply-accumulates saved."
    PARAMS = "params", "Fraction of parameters removed."
    LAYERS = "layers", "Fraction of layers removed."
    BLOCKS = "blocks", "Fraction of blocks removed."
    STEPS = "steps", "Fraction of sampling steps saved."
    TOKENS = "tokens", "Fraction of tokens removed or merged."
    NONE = "none", "Nothing is removed; the row is a dense model."
    UNSTATED = "unstated", "The source does not say of what."


class RowRole(Term):
    """Whose model a result row describes."""

    PROPOSED = "proposed", "The paper's own method."
    ABLATION = "ablation", "A variant of the paper's own method."
    BASELINE = "baseline", "Another method, run or quoted by the paper."
    DENSE = "dense", "The uncompressed model."


class RowStatus(Term):
    """How far a reported row has been checked, least first."""

    REPORTED = "reported", "As the source prints it."
    TRANSCRIPTION_CHECKED = "transcription-checked", "Compared a second time with the source."
    RECOMPUTED = "recomputed", "Parameters or MACs were recomputed from the architecture."
    REPRODUCED_IN_PART = "reproduced-in-part", "Some of it was obtained by running."
    REPRODUCED = "reproduced", "All of it was obtained by running."
    DISPUTED = "disputed", "Another source or our check disagrees; the note says how."


class Bound(Term):
    """How a value is to be read."""

    EXACT = "exact", "As printed."
    ABOUT = "about", "The source says about or approximately."
    AT_MOST = "at-most", "The source says under or up to."
    AT_LEAST = "at-least", "The source says over or at least."


class Origin(Term):
    """Whether a value is printed or computed from printed values."""

    PRINTED = "printed", "The source prints the value."
    DERIVED = "derived", "Computed here from values that the source prints; the note says how."


class ReportItem(Term):
    """Something a reader would want to be told."""

    LATENCY = "latency", "Time on a named device."
    MEMORY = "memory", "Peak memory of sampling or of pruning."
    SEEDS = "seeds", "Spread over repeated runs."
    FID_SAMPLES = "fid-samples", "How many samples a Fréchet distance rests on."
    CODE = "code", "Code that can be run."


class ToolCategory(Term):
    """What a tool is for."""

    PRUNING = "pruning", "Prunes or sparsifies networks."
    RUNTIME = "runtime", "Runs models, sparse or compiled."
    FRAMEWORK = "framework", "Provides the diffusion models and pipelines."
    CACHING = "caching", "Reuses features between steps."
    TOKEN_REDUCTION = "token-reduction", "Merges or drops tokens."
    QUANTIZATION = "quantization", "Reduces bits."
    DISTILLATION = "distillation", "Trains smaller or faster students."
    METRICS = "metrics", "Measures quality."
    PROFILING = "profiling", "Counts operations, time or memory."
    DATASET = "dataset", "Provides data or benchmarks."
    COMPRESSION_SUITE = "compression-suite", "Several compression techniques in one package."


class ToolStatus(Term):
    """How alive a tool is."""

    ACTIVE = "active", "Maintained."
    MAINTENANCE = "maintenance", "Fixes only."
    DORMANT = "dormant", "No change for a year or more."
    ARCHIVED = "archived", "Read-only or declared finished."
    REMOVED = "removed", "Deleted or withdrawn."
    UNCHECKED = "unchecked", "Not looked at."


class TutorialKind(Term):
    """The form of a text for learners."""

    TUTORIAL = "tutorial", "Step by step."
    ARTICLE = "article", "Article or blog post."
    COURSE = "course", "A course or lecture series."
    VIDEO = "video", "A recorded talk."
    DOCUMENTATION = "documentation", "A page of a project's manual."
    NOTEBOOK = "notebook", "Runnable cells."


class Direction(Term):
    """Which way a measure gets better."""

    LOWER = "lower", "Lower is better."
    HIGHER = "higher", "Higher is better."
    NEITHER = "neither", "A size of the experiment, not a grade."


class Metric(StrEnum):
    """What a measured number is, in which units, and in which range it can lie."""

    definition: str
    direction: Direction
    low: float | None
    high: float | None
    units: Mapping[str, float]
    """Accepted units with their factor to the first one, the canonical unit."""

    def __new__(
        cls,
        value: str,
        definition: str,
        direction: str,
        low: float | None,
        high: float | None,
        units: Mapping[str, float],
    ) -> Self:
        metric = str.__new__(cls, value)
        metric._value_ = value
        metric.definition = definition
        metric.direction = Direction(direction)  # type: ignore[call-arg]
        metric.low, metric.high, metric.units = low, high, units
        return metric

    @property
    def unit(self) -> str:
        """The canonical unit."""
        return next(iter(self.units))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        schema["enumDescriptions"] = [
            f"{m.definition} Units: {', '.join(m.units)}. Better: {m.direction.value}." for m in cls
        ]
        return schema

    FID = "fid", "Fréchet Inception distance.", "lower", 0, 1000, {"1": 1}
    SFID = "sfid", "Fréchet distance of spatial features.", "lower", 0, 1000, {"1": 1}
    FVD = "fvd", "Fréchet video distance.", "lower", 0, 10000, {"1": 1}
    FAD = "fad", "Fréchet audio distance.", "lower", 0, 1000, {"1": 1}
    KL = "kl", "Divergence of classifier outputs (audio).", "lower", 0, 100, {"1": 1}
    KID = "kid", "Kernel Inception distance.", "lower", -1, 10, {"1": 1, "x1000": 1e-3}
    CMMD = "cmmd", "Maximum mean discrepancy of CLIP features.", "lower", -1, 100, {"1": 1}
    FID_CHANGE = "fid-change", "FID minus the dense FID.", "lower", -500, 1000, {"1": 1}
    INCEPTION_SCORE = "inception-score", "Inception score.", "higher", 1, 1000, {"1": 1}
    PRECISION = "precision", "Improved precision.", "higher", 0, 1, {"1": 1, "%": 0.01}
    RECALL = "recall", "Improved recall.", "higher", 0, 1, {"1": 1, "%": 0.01}
    CLIP_SCORE = (
        "clip-score",
        "Cosine of CLIP text and image embeddings.",
        "higher",
        -1,
        1,
        {"1": 1, "x100": 0.01},
    )
    IMAGE_REWARD = "image-reward", "ImageReward.", "higher", -5, 5, {"1": 1}
    PICK_SCORE = "pick-score", "PickScore.", "higher", 0, 100, {"1": 1, "%": 1}
    HPS_V2 = "hps-v2", "Human preference score v2.", "higher", 0, 1, {"1": 1, "x100": 0.01}
    AESTHETIC = "aesthetic-score", "Aesthetic predictor.", "higher", 0, 10, {"1": 1}
    GENEVAL = "geneval", "GenEval overall.", "higher", 0, 1, {"1": 1, "%": 0.01}
    DPG = "dpg-bench", "DPG-Bench overall.", "higher", 0, 100, {"1": 1}
    T2I_COMPBENCH = "t2i-compbench", "T2I-CompBench.", "higher", 0, 1, {"1": 1, "%": 0.01}
    VBENCH = "vbench", "VBench total.", "higher", 0, 100, {"%": 1, "1": 100}
    SSIM = "ssim", "Structural similarity to the dense sample.", "higher", -1, 1, {"1": 1}
    PSNR = "psnr", "Peak signal-to-noise to the dense sample.", "higher", 0, 200, {"dB": 1}
    LPIPS = "lpips", "Learned perceptual distance.", "lower", 0, 2, {"1": 1}
    MSE = "mse", "Mean squared error.", "lower", 0, None, {"1": 1}
    ACCURACY = "accuracy", "Fraction of correct answers.", "higher", 0, 100, {"%": 1, "1": 100}
    SUCCESS_RATE = "success-rate", "Fraction of tasks done.", "higher", 0, 100, {"%": 1, "1": 100}
    QUALITY_DROP = (
        "quality-drop",
        "Relative loss of the measure that the note names.",
        "lower",
        -100,
        100,
        {"%": 1},
    )
    PARAMS = "params", "Parameters.", "lower", 0, None, {"M": 1, "B": 1000, "K": 1e-3}
    ACTIVE_PARAMS = (
        "active-params",
        "Parameters used for one forward pass.",
        "lower",
        0,
        None,
        {"M": 1, "B": 1000},
    )
    PARAMS_REMOVED = "params-removed", "Parameters removed.", "higher", 0, 100, {"%": 1}
    WEIGHTS_ZERO = "weights-zero", "Weights set to zero.", "neither", 0, 100, {"%": 1}
    MACS = (
        "macs",
        "Multiply-accumulates of one denoiser call unless the note says otherwise.",
        "lower",
        0,
        None,
        {"G": 1, "T": 1000, "M": 1e-3},
    )
    MACS_TOTAL = (
        "macs-total",
        "Multiply-accumulates of a whole sampling run.",
        "lower",
        0,
        None,
        {"T": 1, "G": 1e-3, "P": 1000},
    )
    FLOPS = (
        "flops",
        "Operations as the source calls FLOPs (often MACs).",
        "lower",
        0,
        None,
        {"T": 1, "G": 1e-3, "P": 1000},
    )
    COMPUTE_SAVED = "compute-saved", "MACs or FLOPs saved.", "higher", 0, 100, {"%": 1}
    MODEL_SIZE = "model-size", "Stored size.", "lower", 0, None, {"MB": 1, "GB": 1024}
    SIZE_SAVED = "size-saved", "Stored size saved.", "higher", 0, 100, {"%": 1}
    STEPS = "steps", "Sampling steps.", "lower", 1, 5000, {"1": 1}
    LATENCY = (
        "latency",
        "Time of what the note or place names.",
        "lower",
        0,
        None,
        {"ms": 1, "s": 1000, "us": 1e-3, "min": 60000},
    )
    LATENCY_SAVED = "latency-saved", "Time saved.", "higher", -1000, 100, {"%": 1}
    SPEEDUP = "speedup", "Dense time over compressed time.", "higher", 0, 10000, {"x": 1}
    THROUGHPUT = "throughput", "Work per second.", "higher", 0, None, {"it/s": 1, "fps": 1}
    MEMORY = "memory", "Peak memory while sampling.", "lower", 0, None, {"MB": 1, "GB": 1024}
    MEMORY_SAVED = "memory-saved", "Peak memory saved.", "higher", -1000, 100, {"%": 1}
    PRUNING_MEMORY = (
        "pruning-memory",
        "Peak memory while pruning.",
        "lower",
        0,
        None,
        {"GB": 1, "MB": 1 / 1024},
    )
    PRUNING_COST = (
        "pruning-cost",
        "Device time of the pruning itself.",
        "lower",
        0,
        None,
        {"GPU-h": 1, "s": 1 / 3600},
    )
    TRAINING_COST = (
        "training-cost",
        "Device time of retraining.",
        "lower",
        0,
        None,
        {"GPU-h": 1, "GPU-day": 24},
    )
    TRAINING_FRACTION = (
        "training-fraction",
        "Retraining as a fraction of the dense training.",
        "lower",
        0,
        100,
        {"%": 1},
    )


VOCABULARIES: tuple[type[Term], ...] = (
    Section,
    Kind,
    Family,
    Granularity,
    Unit,
    Criterion,
    Stage,
    Recovery,
    Architecture,
    Task,
    Modality,
    Calibration,
    CodeStatus,
    Evidence,
    Depth,
    PublicationType,
    Track,
    RelationType,
    SparsityKind,
    RowRole,
    RowStatus,
    Bound,
    Origin,
    ReportItem,
    ToolCategory,
    ToolStatus,
    TutorialKind,
    Direction,
)
"""Every closed vocabulary except `Metric`, in the order of the glossary."""

# --------------------------------------------------------------------------- text and numbers

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:-[a-z0-9]+)*$", max_length=60)]
RowId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:[-.][a-z0-9]+)*$", max_length=80)]
ZooName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:_[a-z0-9]+)*$", max_length=40)]
Line = Annotated[str, StringConstraints(pattern=r"^\S(?:[^\n]*\S)?$", max_length=300)]
Prose = Annotated[str, StringConstraints(pattern=r"^\S(?:[\s\S]*\S)?$", max_length=1500)]
Summary = Annotated[
    str, StringConstraints(pattern=r"^\S(?:[\s\S]*\S)?$", min_length=40, max_length=400)
]
Date = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
ArxivId = Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{4,5}$")]
Doi = Annotated[str, StringConstraints(pattern=r"^10\.\d{4,9}/[^\s?#]+$", max_length=120)]
OpenReviewId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{6,16}$")]
DblpKey = Annotated[str, StringConstraints(pattern=r"^(?:conf|journals|books)/[\w./-]+$")]
HubId = Annotated[
    str,
    StringConstraints(
        pattern=r"^(?:collections/|datasets/|spaces/)?[\w-][\w.-]*/[\w.-]+$", max_length=120
    ),
]
Url = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$", max_length=500)]
SourceRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^(?:github:[\w.-]+/[\w.-]+(?:@[0-9a-f]{7,40})?(?: \S.*)?"
        r"|arxiv:\d{4}\.\d{4,5}(?:v\d+)?(?: \S.*)?"
        r"|(?:doi|openreview|dblp|huggingface|pypi):\S+(?: \S.*)?"
        r"|https?://\S+(?: \S.*)?)$",
        max_length=500,
    ),
]
"""Where a fact was read: `github:owner/repo@commit path`, `arxiv:2305.10924v1`, `https://…`."""
Year = Annotated[StrictInt, Field(ge=1990, le=2100)]
Count = Annotated[StrictInt, Field(ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Resolution = Annotated[str, StringConstraints(pattern=r"^\d+x\d+(?:x\d+)?$")]
Pattern = Annotated[str, StringConstraints(pattern=r"^\d+:\d+$")]


class Record(BaseModel):
    """Settings shared by every record: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --------------------------------------------------------------------------- parts of a paper


class Publication(Record):
    """Where and how a work was published, and where that was read."""

    type: PublicationType
    """How it was published."""
    venue: Line | None = None
    """Short name without the year: `NeurIPS`, `ICLR`, `TMLR`."""
    year: Year | None = None
    """Year of the venue's edition."""
    track: Track | None = None
    """Part of the venue."""
    workshop: Line | None = None
    """Name of the workshop."""
    pages: Line | None = None
    """Pages or article number."""
    evidence: SourceRef | None = None
    """Where the publication was confirmed; wanted for all but preprints."""
    note: Line | None = None
    """What a reader must know to judge it."""


class Code(Record):
    """A repository said to belong to a work."""

    url: Url | None = None
    """Address; left out only when the status is `none-found`."""
    official: StrictBool | None = None
    """True when the authors published it."""
    licence: Line | None = None
    """SPDX identifier, or `none` when the repository states none."""
    status: CodeStatus
    """What the link leads to."""
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,40}$")] | None = None
    """Commit that was looked at."""
    checked: Date | None = None
    """Day on which it was looked at."""
    note: Line | None = None
    """What is missing or broken."""

    @model_validator(mode="after")
    def _url_unless_none_found(self) -> Self:
        if (self.url is None) != (self.status is CodeStatus.NONE_FOUND):
            raise ValueError("give a url, or status none-found without one")
        return self


class Relation(Record):
    """A typed link from this work to another entry."""

    type: RelationType
    """How this work stands to the other."""
    to: Slug
    """Id of the other entry."""
    note: Line | None = None
    """Detail."""
    source: SourceRef | None = None
    """Where it was read."""


class Curation(Record):
    """How deeply the entry was worked on, and when."""

    depth: Depth
    """How much work went into the entry."""
    date: Date
    """Day of the last real check."""
    note: Line | None = None
    """What is still open."""


# --------------------------------------------------------------------------- claim ledger


class Sparsity(Record):
    """How much was removed, and of what."""

    kind: SparsityKind
    """What the value is a fraction of."""
    value: Fraction | None = None
    """Fraction removed, 0 to 1."""
    pattern: Pattern | None = None
    """n:m, n kept of every m, in quotes."""
    origin: Origin = Origin.PRINTED
    """Printed, or computed here from printed values."""
    scope: Line | None = None
    """Which part of the network it refers to."""


class Protocol(Record):
    """How the numbers of a row were obtained, as far as the source says."""

    sampler: Line | None = None
    """Sampler, with its variant."""
    steps: Annotated[StrictInt, Field(ge=1, le=5000)] | None = None
    """Sampling steps of the compressed model."""
    guidance: Number | None = None
    """Classifier-free guidance scale."""
    samples: Count | None = None
    """Images behind a distance or score."""
    seeds: Count | None = None
    """Repeated runs."""
    reference_set: Line | None = None
    """Real images that the samples are compared with."""
    fid_implementation: Line | None = None
    """Program that computed the Fréchet distance."""
    batch: Count | None = None
    """Batch size of a speed or memory measurement."""
    retraining: Line | None = None
    """Budget of retraining: steps, images or device time."""
    note: Line | None = None
    """Anything else that changes the numbers."""


class Measure(Record):
    """One number with its unit and its dense baseline."""

    metric: Metric
    """What was measured."""
    value: Number
    """The number for the compressed model."""
    upper: Number | None = None
    """Upper end when the source gives a range; `value` is then the lower end."""
    unit: Line | None = None
    """Unit, one of the metric's; the canonical one when left out."""
    dense: Number | None = None
    """The same number for the dense model, in the same unit."""
    spread: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    """Standard deviation over repeats."""
    bound: Bound = Bound.EXACT
    """How the value is to be read."""
    note: Line | None = None
    """What exactly was measured where the metric leaves it open."""

    @model_validator(mode="after")
    def _unit_of_metric(self) -> Self:
        if self.unit is not None and self.unit not in self.metric.units:
            raise ValueError(
                f"unit {self.unit!r} is not one of {self.metric.value}'s: "
                f"{', '.join(self.metric.units)}"
            )
        if self.upper is not None and self.upper <= self.value:
            raise ValueError("upper must be greater than value, the lower end of the range")
        return self

    @property
    def canonical(self) -> float:
        """The value in the metric's canonical unit."""
        return self.value * self.metric.units[self.unit or self.metric.unit]

    @property
    def canonical_dense(self) -> float | None:
        """The dense value in the metric's canonical unit."""
        if self.dense is None:
            return None
        return self.dense * self.metric.units[self.unit or self.metric.unit]


class Source(Record):
    """Where a row was read."""

    document: SourceRef
    """`arxiv:2305.10924v2`, `github:owner/repo@commit path`, `openreview:…`, `https://…`."""
    place: Line
    """Table, figure, section, abstract, README heading."""
    row: Line | None = None
    """Row or column within it."""
    via: Line | None = None
    """Through what it was read when the document itself was not: second-hand."""


class Result(Record):
    """One reported model: its settings, its numbers, and where they stand."""

    id: RowId
    """Unique within the entry."""
    role: RowRole = RowRole.PROPOSED
    """Whose model it is."""
    variant: Line | None = None
    """The row's name in the source, such as `Taylor` or `ours T=0.05`."""
    of: Slug | None = None
    """Entry whose method the row shows, when it is not this entry's."""
    base_model: Line
    """The dense model that was compressed."""
    zoo: ZooName | None = None
    """Name of the dense architecture for `python -m methods count`."""
    dataset: Line | None = None
    """Data the quality numbers refer to."""
    resolution: Resolution | None = None
    """Width x height of the generated image (x frames), such as 512x512."""
    sparsity: Sparsity
    """The fraction removed, with its kind."""
    protocol: Protocol = Protocol()
    """How the numbers were obtained."""
    hardware: Line | None = None
    """Device of the speed or memory numbers."""
    precision: Line | None = None
    """Number format: fp32, fp16, bf16, int8."""
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)]
    """The numbers."""
    source: Source
    """Where the row was read."""
    status: RowStatus = RowStatus.REPORTED
    """How far it was checked."""
    note: Prose | None = None
    """What a reader must know before using the row."""


# --------------------------------------------------------------------------- records


class Paper(Record):
    """One work of the literature."""

    id: Slug
    """Short name, lower case with hyphens; never changes once published."""
    section: Section
    """Half of the list."""
    kind: Kind = Kind.PAPER
    """Sort of work."""
    family: Family
    """Group it is listed under."""
    seed: StrictBool = False
    """True for the works the list began with."""
    title: Line
    """Title as published last."""
    alternate_titles: tuple[Line, ...] = ()
    """Earlier or other titles."""
    authors: tuple[Line, ...] = ()
    """Full names in order; empty when no source was read."""
    et_al: StrictBool = False
    """True when the list of authors is known to be cut."""
    year: Year | None = None
    """Year of the first public version."""
    arxiv: ArxivId | None = None
    """arXiv id without version, in quotes."""
    arxiv_versions: tuple[Annotated[StrictInt, Field(ge=1, le=50)], ...] = ()
    """Versions that were read."""
    first_posted: Date | None = None
    """Day of the first arXiv version, where a source states it, in quotes."""
    doi: Doi | None = None
    """DOI without the resolver's address."""
    openreview: OpenReviewId | None = None
    """OpenReview forum id."""
    dblp: DblpKey | None = None
    """DBLP key."""
    publication: Publication
    """Where it was published."""
    page: Url | None = None
    """The work's page at its venue or publisher."""
    project: Url | None = None
    """The authors' project page."""
    code: tuple[Code, ...] = ()
    """Repositories; leave out when nobody looked."""
    hub: tuple[HubId, ...] = ()
    """Models, data sets or collections on the Hugging Face hub, as owner/name."""
    granularity: tuple[Granularity, ...] = ()
    """Shape of what is removed."""
    units: tuple[Unit, ...] = ()
    """Smallest thing removed at once."""
    criteria: tuple[Criterion, ...] = ()
    """How it is decided what goes."""
    stage: tuple[Stage, ...] = ()
    """When it acts."""
    recovery: tuple[Recovery, ...] = ()
    """How quality is restored."""
    calibration: tuple[Calibration, ...] = ()
    """Data needed before retraining."""
    training: Line | None = None
    """The procedure in a few words."""
    architectures: tuple[Architecture, ...] = ()
    """Networks it was shown on."""
    tasks: tuple[Task, ...] = ()
    """What the models are for."""
    modalities: tuple[Modality, ...] = ()
    """What is generated."""
    base_models: tuple[Line, ...] = ()
    """Dense models it was shown on."""
    summary: Summary
    """What is special and what it costs, in own words, 40 to 400 characters."""
    results: tuple[Result, ...] = ()
    """Reported numbers."""
    not_reported: tuple[ReportItem, ...] = ()
    """What the work was read for and does not say."""
    relations: tuple[Relation, ...] = ()
    """Links to other entries."""
    notes: tuple[Prose, ...] = ()
    """Traps, errors in other lists, reports of users."""
    evidence: Evidence
    """Strongest text that was read."""
    curation: Curation
    """How deeply it was worked on."""
    sources: Annotated[tuple[SourceRef, ...], Field(min_length=1)]
    """Where the facts were read."""

    @property
    def arxiv_url(self) -> str | None:
        return self.arxiv and f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def doi_url(self) -> str | None:
        return self.doi and f"https://doi.org/{self.doi}"

    @property
    def openreview_url(self) -> str | None:
        return self.openreview and f"https://openreview.net/forum?id={self.openreview}"

    @property
    def dblp_url(self) -> str | None:
        return self.dblp and f"https://dblp.org/rec/{self.dblp}"

    @property
    def hub_urls(self) -> tuple[str, ...]:
        return tuple(f"https://huggingface.co/{name}" for name in self.hub)

    @property
    def url(self) -> str | None:
        """The best address of the work: arXiv, then DOI, OpenReview, page, project, code."""
        code = next((c.url for c in self.code if c.url), None)
        return (
            self.arxiv_url
            or self.doi_url
            or self.openreview_url
            or self.page
            or self.project
            or code
            or next(iter(self.hub_urls), None)
        )

    @property
    def posted(self) -> tuple[int, int] | None:
        """Year and month of the first arXiv version, read off the id."""
        return (2000 + int(self.arxiv[:2]), int(self.arxiv[2:4])) if self.arxiv else None


class Tool(Record):
    """A program or library a reader may want to use."""

    id: Slug
    """Short name."""
    name: Line
    """Name as its makers write it."""
    category: ToolCategory
    """What it is for."""
    url: Url
    """Repository or home page."""
    docs: Url | None = None
    """Manual."""
    package: Line | None = None
    """Name to install it by."""
    licence: Line | None = None
    """SPDX identifier."""
    status: ToolStatus
    """How alive it is."""
    version: Line | None = None
    """Version that was looked at, in quotes."""
    summary: Summary
    """What it does for pruned diffusion models, in own words."""
    traps: tuple[Prose, ...] = ()
    """What goes wrong, with versions."""
    papers: tuple[Slug, ...] = ()
    """Entries that it belongs to or implements."""
    curation: Curation
    """How deeply it was looked at."""
    sources: Annotated[tuple[SourceRef, ...], Field(min_length=1)]
    """Where the facts were read."""


class Tutorial(Record):
    """A text, talk or notebook that teaches something of use here."""

    id: Slug
    """Short name."""
    kind: TutorialKind
    """Form."""
    title: Line
    """Title."""
    authors: tuple[Line, ...] = ()
    """Authors or publishing organisation."""
    year: Year | None = None
    """Year of publication."""
    url: Url
    """Address."""
    summary: Summary
    """What a reader learns, in own words."""
    papers: tuple[Slug, ...] = ()
    """Entries that it explains."""
    curation: Curation
    """How deeply it was looked at."""
    sources: Annotated[tuple[SourceRef, ...], Field(min_length=1)]
    """Where it was seen."""


class Literature(Record):
    """The whole of papers.yaml."""

    schema_version: Literal["1.0"]
    """Version of this schema, in quotes."""
    papers: tuple[Paper, ...]
    """Works, sorted by id."""
    tools: tuple[Tool, ...] = ()
    """Tools and libraries, sorted by id."""
    tutorials: tuple[Tutorial, ...] = ()
    """Tutorials and articles, sorted by id."""


RECORDS: Mapping[str, type[Record]] = {"papers": Paper, "tools": Tool, "tutorials": Tutorial}
"""The lists of papers.yaml and the record each of them holds."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that editors use to complete and check papers.yaml."""
    schema = Literature.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "papers.yaml",
        **{k: v for k, v in schema.items() if k != "title"},
    }


def field_order(record: type[BaseModel]) -> tuple[str, ...]:
    """Canonical order of a record's keys: the order of declaration."""
    return tuple(record.model_fields)


_WORD = re.compile(r"[a-z0-9]+")


def title_key(title: str) -> str:
    """A title reduced to lower-case letters and digits, for comparison."""
    return " ".join(_WORD.findall(title.lower()))
