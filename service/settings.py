"""Everything an operator can set: environment and one TOML file, read once, then handed down."""

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import BadSettings


class Section(BaseModel):
    """A frozen part of the settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Server(Section):
    """Where the service listens and how it stops."""

    host: str = "127.0.0.1"
    """An address beyond loopback needs API keys."""
    port: Annotated[int, Ge(0), Le(65535)] = 8311
    keys: Literal["auto", "required"] = "auto"
    """`auto`: no keys on loopback, keys anywhere else."""
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """Names that a keyless service answers to."""
    allowed_origins: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s*]+$")], ...] = ()
    """Web pages that may call the service from a browser (`https://notes.example`)."""
    gateways: Annotated[int, Ge(1), Le(64)] = 1
    """Gateway replicas on Ray. Quotas count per replica unless quotas.storage is shared."""
    drain_seconds: Annotated[float, Ge(0)] = 60.0
    request_seconds: Annotated[float, Gt(0)] = 300.0
    """The longest a picture may take, queueing included."""
    picture_metadata: bool = True
    """Whether pictures carry their prompt, edits and settings as PNG text."""
    public_url: str = ""
    """What picture addresses begin with; empty: as the client called us."""


class Storage(Section):
    """Where the registry keeps its index and its blobs; empty: in the state folder."""

    index_url: str = ""
    blobs_url: str = ""


class Corpus(Section):
    """Captions that tell what the text encoder usually reads (the second moment of keys)."""

    path: str = ""
    """A text file with one caption a line, all of which is read; empty: the miniature's."""


class Refact(Section):
    """What the ReFACT editor of one model is given by its operator."""

    templates: str = ""
    """The nine templates of mode `reference`, JSON or text; empty: our own, and no parity."""


class Sae(Section):
    """A sparse autoencoder that a language model is steered with."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """What requests call it."""
    path: str
    """A file or folder in one of the published layouts, or a hub id."""
    site: str = ""
    """The stream that it reads (`lm.block.12`); empty: as its files say."""


class Evidence(Section):
    """Which causal evidence a model asks for (docs/causal-evidence.md); off unless it is set."""

    feature_gate: bool = False
    """Whether a feature steers only after a passed `feature_gate`."""
    tau: Annotated[float, Ge(0), Le(1)] = 0.5
    """Of a feature's IIA, at least: as a share of the whole stream's."""
    margin: Annotated[float, Ge(0), Le(1)] = 0.1
    """By how much it exceeds random features, at least."""
    kappa: Annotated[float, Gt(0)] = 0.1
    """Nats per token by which it moves texts about anything else, at most."""
    rows: Annotated[int, Ge(1)] = 50
    """That a gate rests on, at least."""
    unverified: Literal["refuse", "allow"] = "refuse"
    """Whether a request may say that it steers with features that no gate speaks for."""
    edit_audit: bool = False
    """Whether an edit takes an alias only after a passed `edit_audit`."""
    tolerance: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of a suite's decisions that may change, and the most that f of its circuit may."""
    pairs: Annotated[int, Ge(1)] = 10
    """Of every suite of an audit, at least."""


class Model(Section):
    """One hosted model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    path: str
    """A folder written by `save_pretrained`, a hub id, or `miniature:<name>`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    denoiser_dtype: Literal["", "auto", "float32", "bfloat16"] = ""
    """Stable Diffusion; empty: as `dtype`; `auto`: bfloat16 where the CPU multiplies it."""
    device: str = "cpu"
    slots: Annotated[int, Ge(1), Le(256)] = 8
    """Rows that share one call of the denoiser, or of the decoder."""
    mode: Literal["exact", "fast"] = "exact"
    """`exact`: a row's picture is bitwise the same alone and in company."""
    steps: Annotated[int, Ge(1), Le(1000)] | None = None
    """For requests that do not say; None: as the model's `tiller.json` or its family says."""
    guidance_scale: Annotated[float, Ge(0)] | None = None
    """As `steps`."""
    pixels: Annotated[int, Ge(1)] | None = None
    """The most of one of its pictures; None: as its `tiller.json` says, else `limits.pixels`."""
    max_waiting: Annotated[int, Ge(1), Le(10_000)] = 64
    threads: Annotated[int, Ge(1), Le(256)] = 1
    replicas: Annotated[int, Ge(1), Le(256)] = 1
    cache_bytes: Annotated[int, Ge(0)] = 256 * 2**20
    """Prompt embeddings."""
    store_bytes: Annotated[int, Ge(2**20)] = 256 * 2**20
    """Deltas."""
    cpus: Annotated[float, Gt(0)] = 1.0
    gpus: Annotated[float, Ge(0)] = 0.0
    memory_bytes: Annotated[int, Ge(0)] = 2 * 2**30
    """Declared to Ray, which otherwise packs replicas by CPU only."""
    family: str = ""
    """Its kind; empty: the one that recognises the folder."""
    projection: str = ""
    """A full CLIP whose text tower is the pipeline's, for fact edits; empty: `clip/` inside."""
    corpus: Corpus = Corpus()
    refact: Refact = Refact()
    evidence: Evidence = Evidence()
    saes: tuple[Sae, ...] = ()
    """Language models: their dictionaries; those of the embedded one are found by themselves."""
    capacity: Annotated[int, Ge(8)] | None = None
    """Language models: tokens of one slot, prompt and answer; None: the model's context."""
    prefill_tokens: Annotated[int, Ge(1)] = 256
    """Language models: prompt tokens that are read between two decoding steps."""
    prefix_bytes: Annotated[int, Ge(0)] = 256 * 2**20
    """Language models: keys and values of prompts that were read already."""
    sight_bytes: Annotated[int, Ge(0)] = 64 * 2**20
    """Vision-language models: what the vision tower made of pictures that were seen already."""

    def over(self, stated: Mapping[str, object]) -> "Model":
        """The same with what the model's `tiller.json` states where nothing was set here.

        Raises:
            BadSettings: The model states something that no picture can be drawn with.
        """
        known = ("steps", "guidance_scale", "pixels")
        unset = [k for k in known if getattr(self, k) is None and k in stated]
        try:
            told = {**self.model_dump(exclude_unset=True), **{k: stated[k] for k in unset}}
            return Model.model_validate(told)
        except ValidationError as error:
            raise BadSettings(f"{self.path}/tiller.json", str(error)) from None


class Limits(Section):
    """Bounds on what one request may ask for."""

    body_bytes: Annotated[int, Ge(1024)] = 64 * 2**20
    images: Annotated[int, Ge(1), Le(10)] = 10
    lens_pictures: Annotated[int, Ge(1), Le(1000)] = 100
    """Layers times seeds of one look through the lens."""
    steps: Annotated[int, Ge(1), Le(1000)] = 100
    side: Annotated[int, Ge(8), Le(4096)] = 2048
    pixels: Annotated[int, Ge(64)] = 2048 * 2048
    prompt_characters: Annotated[int, Ge(1)] = 4000
    guidance_scale: Annotated[float, Gt(0)] = 50.0
    edits: Annotated[int, Ge(0)] = 64
    strength: Annotated[float, Gt(0)] = 2.0
    phrasings: Annotated[int, Ge(0)] = 32
    target_images: Annotated[int, Ge(0)] = 8
    target_image_bytes: Annotated[int, Ge(1024)] = 4 * 2**20
    target_image_pixels: Annotated[int, Ge(64)] = 4096 * 4096
    import_bytes: Annotated[int, Ge(1024)] = 32 * 2**20
    wait_seconds: Annotated[float, Ge(0)] = 60.0
    """The longest `Prefer: wait=` that is honoured."""
    text_characters: Annotated[int, Ge(1)] = 200_000
    """Of all messages of a conversation, or of all prompts of a completion."""
    messages: Annotated[int, Ge(1)] = 256
    prompts: Annotated[int, Ge(1)] = 16
    """Of one completion request."""
    choices: Annotated[int, Ge(1), Le(128)] = 16
    """`n` times the prompts; plain twins count as well."""
    max_tokens: Annotated[int, Ge(1)] = 4096
    """Of one choice; also what a request gets that names no number."""
    stop: Annotated[int, Ge(0)] = 16
    logit_bias: Annotated[int, Ge(0)] = 300
    top_logprobs: Annotated[int, Ge(0), Le(20)] = 20
    steering: Annotated[int, Ge(0)] = 16
    """Features, vectors and concepts of one request together."""
    steering_strength: Annotated[float, Gt(0)] = 1000.0
    """Of one of them, in the units of its mode."""
    steering_ratio: Annotated[float, Gt(0)] = 10.0
    """Of a change's norm to the stream's own norm, per site."""
    input_pictures: Annotated[int, Ge(0), Le(1000)] = 8
    """That a conversation shows."""
    input_picture_bytes: Annotated[int, Ge(1024)] = 8 * 2**20
    """Of one of them, as PNG, JPEG or WebP."""
    input_pixels: Annotated[int, Ge(64)] = 32 * 2**20
    """Of all of them together."""
    backpatch_loops: Annotated[int, Ge(1), Le(10)] = 10
    """Of one plan: each reads the prompt up to its last picture once more."""
    calibration_examples: Annotated[int, Ge(8)] = 2000
    """Of one calibration of back-patching."""
    calibration_bytes: Annotated[int, Ge(1024)] = 128 * 2**20
    """Of their pictures together, unpacked."""
    calibration_plans: Annotated[int, Ge(1)] = 4000
    """That one of them tries."""
    dataset_rows: Annotated[int, Ge(1)] = 5000
    """Of one data set: they are put into the model's tokens while the request waits."""
    dataset_characters: Annotated[int, Ge(1)] = 10_000_000
    """Of its texts together."""
    dataset_pixels: Annotated[int, Ge(64)] = 2**28
    """Of its pictures together, which are decoded while the request waits."""
    pictures_bytes: Annotated[int, Ge(2**20)] = 512 * 2**20
    pictures_seconds: Annotated[float, Gt(0)] = 3600.0
    """How long a picture's address works."""


class Remote(Section):
    """Pictures that requests name by an address: from nowhere, unless hosts are named."""

    hosts: tuple[Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9.:\[\]-]+$")], ...] = ()
    """`images.example.org`, `*.example.org` for all below it, `example.org:8443`."""
    seconds: Annotated[float, Gt(0), Le(600)] = 10.0
    """For one picture, every hop included."""
    redirects: Annotated[int, Ge(0), Le(10)] = 3
    plain_http: bool = False
    """Whether addresses may begin with http://, which anybody on the way can change."""
    private: bool = False
    """Whether a named host may be inside the operator's own network."""


class Quotas(Section):
    """Per API key (per tenant without keys) and minute; 0 is no quota."""

    requests_a_minute: Annotated[int, Ge(0)] = 0
    images_a_minute: Annotated[int, Ge(0)] = 0
    storage: str = "memory://"
    """Of the `limits` package; a shared one when there are several gateways."""


class Thresholds(Section):
    """What a fitted edit's report must reach; below it the version is marked failed_checks.

    What is not set here is as the model's own `tiller.json` states, else the default.
    """

    efficacy: Annotated[float, Ge(0), Le(1)] = 0.5
    moved: Annotated[float, Le(1)] = 0.5
    generality: Annotated[float, Ge(0), Le(1)] = 0.7
    reach: Annotated[float, Le(1)] = 0.5
    specificity: Annotated[float, Ge(0), Le(1)] = 0.95
    stray: Annotated[float, Gt(0)] = 0.1
    leak: Annotated[float, Ge(0)] = 0.15

    def over(self, stated: Mapping[str, object]) -> dict[str, float]:
        """All thresholds: those that were set, else the model's, else the defaults.

        Raises:
            BadSettings: The model states something that is no threshold.
        """
        try:
            model = Thresholds.model_validate({**stated, **self.model_dump(exclude_unset=True)})
        except ValidationError as error:
            raise BadSettings("the model's tiller.json", str(error)) from None
        return model.model_dump()


class Conflicts(Section):
    """When a new edit contradicts a live one, and how many it is compared with."""

    overlap: Annotated[float, Gt(0)] = 0.9
    """From which |rho| of two keys they are one subject, which cannot have two targets."""
    edits: Annotated[int, Ge(0), Le(100_000)] = 1000
    """Live edits that a new one is compared with, by name; its report says if there are more."""


class Jobs(Section):
    """Fits and other long work."""

    lease_seconds: Annotated[float, Ge(1)] = 60.0
    """A worker that has not been heard of for so long is lost; its job is taken over."""
    poll_seconds: Annotated[float, Gt(0)] = 0.2
    waiting_a_tenant: Annotated[int, Ge(1)] = 100


class Settings(Section):
    """All of it."""

    home: Path = Path("~/.tiller")
    server: Server = Server()
    storage: Storage = Storage()
    models: tuple[Model, ...] = ()
    limits: Limits = Limits()
    remote: Remote = Remote()
    quotas: Quotas = Quotas()
    thresholds: Thresholds = Thresholds()
    conflicts: Conflicts = Conflicts()
    jobs: Jobs = Jobs()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [m.name for m in self.models]
        if len(set(names)) < len(names):
            raise ValueError("two models have the same name")
        return self

    @classmethod
    def read(cls, environment: Mapping[str, str], config: Path | None = None) -> "Settings":
        """The settings of a file and of `TILLER_HOME`, `TILLER_HOST`, `TILLER_PORT`.

        The environment wins over the file; without models the embedded miniature is served.

        Raises:
            BadSettings: The file is missing, is not TOML, or has an unknown key or a bad value.
        """
        told = _file(config) if config else {}
        if "TILLER_HOME" in environment:
            told["home"] = environment["TILLER_HOME"]
        server = told.setdefault("server", {})
        for variable, key in (("TILLER_HOST", "host"), ("TILLER_PORT", "port")):
            if isinstance(server, dict) and variable in environment:
                server[key] = environment[variable]
        told.setdefault("models", list(EMBEDDED))
        try:
            settings = cls.model_validate(told)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise BadSettings(str(config or "environment"), f"{where}: {first['msg']}") from None
        return settings.model_copy(update={"home": settings.home.expanduser().absolute()})

    @property
    def index_url(self) -> str:
        """The registry's database."""
        return self.storage.index_url or f"sqlite:///{self.home / 'registry.sqlite'}"

    @property
    def blobs_url(self) -> str:
        """The registry's blobs."""
        return self.storage.blobs_url or str(self.home / "blobs")

    @property
    def keyless(self) -> bool:
        """Whether everybody who reaches the service may use it."""
        return self.server.keys == "auto" and is_loopback(self.server.host)


EMBEDDED: tuple[Mapping[str, Any], ...] = (
    {
        "name": "miniature-sd",
        "path": "miniature:text-to-image",
        "denoiser_dtype": "auto",
        "slots": 9,  # the layers of its text encoder: a look through all of them is one batch
    },
    {"name": "miniature-lm", "path": "miniature:language", "slots": 16},
    {"name": "miniature-vl", "path": "miniature:vision-language"},
)
"""What is hosted when nobody says otherwise."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file(config: Path) -> dict[str, object]:
    try:
        return tomllib.loads(config.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(str(config), str(error)) from None
