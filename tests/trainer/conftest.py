import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As the trainer runs; more threads than cores make small steps many times slower."""
    torch.set_num_threads(1)
