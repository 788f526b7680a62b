"""Settings of a server process, passed as JSON in its environment."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from escdiff.backbone import read_blueprint
from escdiff.backbone.presets import preset
from escdiff.encoder.checkpoint import read_config
from escdiff.serving.engine import Engine
from escdiff.serving.limits import Limits

VARIABLE = "ESCDIFF_SERVE"


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Attributes:
        backbone, encoder, guidance, device, dtype: see `Engine.load`.
        store: folder of the concept files; processes and machines that serve together must all see it.
        owners: see `read_keys`.
    """

    store: str
    backbone: str = "mini"
    encoder: str | None = None
    guidance: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    owners: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def to_environment(self) -> dict[str, str]:
        """For the process that serves."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings that `to_environment` wrote."""
        values = json.loads(environment[VARIABLE])
        return cls(**values | {"limits": Limits(**values["limits"])})

    def check(self) -> None:
        """Look at the models' configurations, before weights are read and processes are started.

        Raises:
            UserError: one is missing, or they do not go together.
        """
        backbone = preset(self.backbone).get("name", self.backbone)
        read_config(self.encoder, read_blueprint(backbone))

    def load(self) -> Engine:
        """Read the models.

        Raises:
            UserError: one that is missing.
        """
        return Engine.load(self.backbone, self.encoder, self.guidance, self.device, self.dtype, self.limits)
