"""What all embeddings of a library are made with: one probe, one `EmbedSettings`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..embedding import Embedding, ProbeInfo
from ..probe.probe import Probe
from ..settings import JSON, EmbedSettings, settings_of_format_2, value_differences


@dataclass(frozen=True)
class LibrarySettings:
    """What all embeddings of a library are made with."""

    probe: ProbeInfo
    settings: EmbedSettings
    filters: int  # K, the length of every embedding

    @classmethod
    def of(cls, probe: Probe, settings: EmbedSettings) -> LibrarySettings:
        """Return what embeddings of this probe with these settings are made with; raise where they do not fit."""
        probe = settings.loss_object.tap(probe)
        return cls(ProbeInfo.of(probe), settings, settings.check(probe)[-1].stop)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> LibrarySettings:
        """Return what `to_json` wrote, or what version 0.1 did."""
        if "settings" in record:
            return cls(ProbeInfo(**record["probe"]), EmbedSettings.from_json(record["settings"]), record["filters"])
        head = {"method": record["head_method"], "l2": record["head_l2"], "class_balanced": record["class_balanced"]}
        probe = ProbeInfo(**record["probe"], preprocess=record["preprocess"])
        return cls(probe, EmbedSettings.from_json(settings_of_format_2(record, head)), record["filters"])

    def to_json(self) -> dict[str, JSON]:
        """Return it as what JSON can hold."""
        return {"probe": asdict(self.probe), "settings": self.settings.to_json(), "filters": self.filters}

    def changes(self, other: LibrarySettings | Embedding) -> list[str]:
        """Return in what another library, or an embedding, was made differently, in words."""
        changes = self.probe.differences(other.probe) + self.settings.changes(other.settings)
        filters = len(other) if isinstance(other, Embedding) else other.filters
        return changes + value_differences("filters", self.filters, filters)
