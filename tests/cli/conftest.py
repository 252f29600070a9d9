import pytest

from tests.cli.demo_files import write_images, write_weights


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "model.pth")
