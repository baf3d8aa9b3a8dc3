"""The best model of a run and what it predicts for the test set: what results, predictions and figures are made of."""

from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.data import DataRequest
from cmsbert_fast.data.example import Corpus
from cmsbert_fast.data.task import labels_of
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training import evaluate
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.preflight import Data
from cmsbert_fast.training.settings import TrainingSettings


class Tested(NamedTuple):
    """A tested model.

    Attributes:
        model, processor: The best of the run, on its device.
        corpus: The data of the run.
        predictions: For the test set, all finite.
        request: What ``corpus`` was read by.
        name: Of the variant.
        alignment: Of the predictions' embeddings (:func:`~cmsbert_fast.training.evaluate.alignment_of`).
    """

    model: Classifier
    processor: CMSBertProcessor
    corpus: Corpus
    predictions: Predictions
    request: DataRequest
    name: str = ""
    alignment: dict[str, Any] | None = None


def load_and_test(settings: TrainingSettings, data: Data, ranks: Ranks, folder: Path) -> Tested:
    """Loads the best model of the run in ``folder`` and predicts the test set. All ranks must call.

    Raises:
        NotFinite: Some predictions are not finite.
    """
    model, processor = load_best(settings, ranks, folder)
    batches = Batches(data.corpus.splits["test"], processor, model, ranks.device)
    predictions = evaluate.predict(model, batches, ranks, settings.batch_size, settings.precision)
    finite = evaluate.check_finite(predictions)
    aligned = evaluate.alignment_of(finite, labels_of(data.corpus))
    return Tested(model, processor, data.corpus, finite, settings.request(), settings.variant, aligned)


def load_best(settings: TrainingSettings, ranks: Ranks, folder: Path) -> tuple[Classifier, CMSBertProcessor]:
    """The best model of the run in ``folder``, on this process's device, and its processor."""
    options = {} if ranks.is_main else {"say": lambda sentence: None}
    model, processor = load_trained(folder, settings.backend, **options)
    model.to(ranks.device)  # type: ignore[arg-type]
    return model, processor
