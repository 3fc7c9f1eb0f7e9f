"""One engine for every training: models on disk, trainer, callbacks, batches, rows, splits."""
