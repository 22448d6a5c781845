"""How vectors of images lie to one another: nearest neighbours, and a plane through them."""

import torch
import torch.nn.functional as F

CHUNK = 2**26  # similarities that are held at a time: 256 MiB


def nearest(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest rows by the cosine distance 1 - q . g / (|q| |g|); of equally near ones the first.

    Args:
        queries: (Q, D).
        gallery: (N, D).
        k: at most N.

    Returns:
        Distances (Q, k), the nearest first, and rows of the gallery (Q, k).
    """
    others = F.normalize(gallery.double(), dim=1)
    rows = max(1, CHUNK // len(others))
    parts = [
        (1 - F.normalize(part.double(), dim=1) @ others.T).sort(dim=1, stable=True) for part in queries.split(rows)
    ]
    return torch.cat([part.values[:, :k] for part in parts]), torch.cat([part.indices[:, :k] for part in parts])


def principal_plane(vectors: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """The vectors (N, D) on the plane of their first two principal components.

    A component's sign, which is free, is such that its weight of largest size is positive, so that the same vectors give the
    same picture.

    Returns:
        Coordinates (N, 2), float64, and each component's share of the variance.
    """
    centred = vectors.double() - vectors.double().mean(dim=0)
    variances, components = torch.linalg.eigh(centred.T @ centred)  # rising; D x D, however many images there are
    plane = components[:, -2:].flip(1)
    largest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    shares = (variances[-2:].flip(0) / variances.sum().clamp_min(1e-300)).tolist()
    return centred @ (plane * largest.sign()), shares
