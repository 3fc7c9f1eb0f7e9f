"""Where published weights are, and under which licence."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from sthist._settings import logger

OPEN_LICENCES = ("apache-2.0", "mit", "bsd-3-clause")
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """What is known of weights before any of them are loaded."""

    hub_id: str  # owner/name on the Hugging Face hub; empty where they are not there
    licence: str  # as its makers name it
    _: KW_ONLY
    gated: bool = False  # given on request, as far as was known when this was written: the hub decides
    files: tuple[str, ...] = WEIGHT_NAMES  # the preferred first
    extras: tuple[str, ...] = ("config.json",)  # taken if they are there

    @property
    def page(self) -> str:
        """Web page with the licence."""
        return f"https://huggingface.co/{self.hub_id}" if self.hub_id else ""

    @property
    def is_open(self) -> bool:
        """Whether anyone may use it for anything, without asking."""
        return self.licence.lower() in OPEN_LICENCES and not self.gated

    def describe(self) -> str:
        """Hub id, licence and page in one sentence."""
        gated = (
            " It is given on request: accept its terms on that page, then run `hf auth login`." if self.gated else ""
        )
        page = f" ({self.page})" if self.page else ""
        return f"{self.hub_id or 'this model'}, licence: {self.licence}{page}.{gated}"

    def announce(self, doing: str) -> None:
        """Log the licence: a warning where it binds the user, information elsewhere."""
        log = logger.info if self.is_open else logger.warning
        log("%s %s", doing, self.describe())
