"""The declaration: read whenever a matrix file names the method, so it does not import torch."""

from kdbench.plugin import Method

METHOD = Method(step="feature_kd.step:feature_kd", teacher="image-embeddings", projection=False)
