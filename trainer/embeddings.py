"""The dynamic tables of a specification: their stores, their part of a checkpoint, and what serving must hear of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from headrace.embedding_files import Changed
from headrace.id_index import Keys
from headrace.settings import ConfigError
from schemas.features import FeatureSpec
from trainer.embedding_store import EmbeddingStore
from trainer.embedding_table import EmbeddingTable, Floats, TableLimits
from trainer.settings import TrainerSettings


class Embeddings:
    """One table for each feature whose table is dynamic. `folder` is scratch; `copy` a checkpoint to go on from."""

    def __init__(self, features: FeatureSpec, settings: TrainerSettings, folder: Path, copy: Path | None) -> None:
        self.tables: dict[str, EmbeddingTable] = {}
        self._stores: list[EmbeddingStore] = []
        limits = TableLimits(
            settings.embedding_admission_count,
            settings.embedding_max_age_s,
            settings.embedding_capacity_ids,
            settings.embedding_hot_rows,
        )
        for place, feature in enumerate(features.dynamic):
            most = 2 * settings.batch_size * feature.length
            if most > settings.embedding_hot_rows:
                raise ConfigError(
                    f"trainer.embedding_hot_rows = {settings.embedding_hot_rows}: a batch of {settings.batch_size} transitions may use "
                    f"{most} rows of {feature.name}; allowed is that or more"
                )
            store = EmbeddingStore(folder / _name(place), copy / _name(place) if copy else None)
            table = EmbeddingTable(feature.dim, limits, settings.embedding_learning_rate, store)
            for known in store.scan():
                table.know(*known)
            self.tables[feature.name] = table
            self._stores.append(store)

    def forget_old(self, now_s: int) -> None:
        """Forget the ids that have not come for too long."""
        for table in self.tables.values():
            table.forget_old(now_s)

    def copy_into(self, folder: Path) -> None:
        """Put everything into a checkpoint's folder."""
        for place, (table, store) in enumerate(zip(self.tables.values(), self._stores, strict=True)):
            table.flush()
            store.snapshot(folder / _name(place))

    def close(self) -> None:
        """Release the scratch folder."""
        for store in self._stores:
            store.close()

    def changed(self) -> dict[str, Changed]:
        """What serving must hear since this was last asked, by feature; empty where nothing changed."""
        changed = {name: Changed(*table.unsent()) for name, table in self.tables.items()}
        return {name: change for name, change in changed.items() if len(change.gone) or len(change.keys)}

    def all_rows(self) -> Iterator[tuple[str, Keys, Floats]]:
        """Every row, in parts."""
        for name, table in self.tables.items():
            for keys, weights in table.rows():
                yield name, keys, weights

    def gauges(self) -> Mapping[str, float]:
        """Of all tables together; empty without any."""
        gauges: dict[str, float] = {}
        for table in self.tables.values():
            for name, value in table.gauges().items():
                gauges[f"embedding_{name}"] = gauges.get(f"embedding_{name}", 0.0) + value
        return gauges


def _name(place: int) -> str:
    return f"embeddings-{place}"
