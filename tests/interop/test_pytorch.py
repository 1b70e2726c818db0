"""The store in a training loop of PyTorch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.data.store_reader import Store
from tests.support import model_stores

torch = pytest.importorskip("torch", reason="the environment of make test-interop has it")

pytestmark = pytest.mark.long

SEQUENCES = 203


class Blocks(torch.utils.data.IterableDataset):
    """The blocks of an epoch, divided among the processes that load them."""

    def __init__(self, store: str, epoch: int) -> None:
        self.store, self.epoch = store, epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        store = Store(self.store) if worker is None else Store(self.store).part(worker.id, of=worker.num_workers)
        for block in store.shuffled_blocks("train", seed=1, epoch=self.epoch, pool_chunks=4):
            yield torch.from_numpy(block.features), torch.from_numpy(block.label)


@pytest.mark.parametrize("workers", [0, 2])
def test_pytorch_reads_every_sequence_once_per_epoch_and_learns(tmp_path: Path, workers: int) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, SEQUENCES)]}, np.arange(SEQUENCES) % 3)
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for epoch in range(3):
        loader = torch.utils.data.DataLoader(
            Blocks(str(output.store), epoch), None, num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip
        seen, loss_of_epoch = [], 0.0
        for features, label in loader:
            seen += features[:, 0, 0].long().tolist()
            loss = torch.nn.functional.cross_entropy(network(features / SEQUENCES), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss_of_epoch += loss.item()
        assert sorted(seen) == list(range(SEQUENCES))
        losses.append(loss_of_epoch)
    assert losses[-1] < losses[0]
