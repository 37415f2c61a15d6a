"""k-means: separated groups, centroids that are means, falling cost, empty clusters, kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.kernels.kmeans import kmeans, sorted_by_cluster


def cost(x: torch.Tensor, centroids: torch.Tensor) -> float:
    """Return the sum of squared distances to the nearest centroid."""
    return float(torch.cdist(x.double(), centroids.double()).amin(-1).square().sum())


def groups(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens of three far groups in mixed order, and which group each is of."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(tokens) % 3
    centres = torch.eye(3, 16) * 50
    return centres[label] + torch.randn(2, tokens, 16, generator=generator), label


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_groups_are_told_apart(backend: str, dtype: torch.dtype) -> None:
    x, label = groups(75)
    x = x.to(dtype)
    found = kmeans(x, 3, init=x[:, :3], backend=backend)
    assert torch.equal(found.ids.long(), label.expand(2, -1))
    assert found.sizes.tolist() == [[25] * 3] * 2
    means = torch.stack([x[:, label == j].float().mean(1) for j in range(3)], 1)
    torch.testing.assert_close(found.centroids, means, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_an_empty_cluster_keeps_its_centroid(backend: str) -> None:
    x = torch.randn(1, 40, 16)
    init = torch.stack([torch.zeros(16), torch.full((16,), 1e3)])[None]
    found = kmeans(x, 2, init=init, backend=backend)
    assert found.sizes.tolist() == [[40, 0]]
    assert torch.equal(found.centroids[0, 1], init[0, 1])


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_the_first_of_equal_clusters_wins(backend: str) -> None:
    x = torch.ones(1, 70, 16)
    assert not kmeans(x, 70, iterations=1, backend=backend).ids.any()


def test_the_kernel_equals_the_definition_on_more_clusters_than_a_tile() -> None:
    x = torch.randn(1, 70, 20, generator=torch.Generator().manual_seed(3))
    plain, kernel = (kmeans(x, 66, iterations=1, backend=b) for b in ("torch", "interpret"))
    assert torch.equal(plain.ids, kernel.ids) and torch.equal(plain.sizes, kernel.sizes)
    torch.testing.assert_close(plain.centroids, kernel.centroids)


@given(tokens=st.integers(4, 60), k=st.integers(1, 4), seed=st.integers(0, 50))
@settings(max_examples=25)
def test_more_iterations_never_cost_more_and_centroids_are_means(
    tokens: int, k: int, seed: int
) -> None:
    x = torch.randn(1, tokens, 6, generator=torch.Generator().manual_seed(seed)).double()
    costs = [cost(x, kmeans(x, k, iterations=i).centroids) for i in (1, 2, 5)]
    assert costs[0] >= costs[1] - 1e-9 >= costs[2] - 2e-9
    found = kmeans(x, k, iterations=3)
    for j in range(k):
        members = x[0, found.ids[0] == j]
        assert len(members) == int(found.sizes[0, j])
        if len(members):
            torch.testing.assert_close(found.centroids[0, j], members.mean(0))


def test_lists_do_not_see_each_other() -> None:
    x = torch.randn(3, 30, 8)
    together = kmeans(x, 4)
    for i in range(3):
        assert torch.equal(together.ids[i : i + 1], kmeans(x[i : i + 1], 4).ids)


def test_sorting_puts_members_together() -> None:
    ids = torch.randint(0, 5, (2, 40))
    assert (ids.gather(1, sorted_by_cluster(ids)).diff(dim=1) >= 0).all()


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_fits() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="6 clusters of 5 tokens.*allowed are 1 to 5"):
        kmeans(x, 6)
    with pytest.raises(ValueError, match=r"`init` of shape \(1, 2, 3\): expected \(2, 2, 3\)"):
        kmeans(x, 2, init=torch.zeros(1, 2, 3))
