import pytest

from detrx.config_zoo import config_root, get_config, get_config_file


@pytest.mark.parametrize("name", ["common/data/digits.py", "common/data/digits"])
def test_config_by_name(name):
    assert get_config(name).dataloader.train.dataset.names == "digits_train"


def test_unknown_config_lists_similar_ones():
    with pytest.raises(FileNotFoundError, match=r"no config 'common/digits\.py'.*common/data/digits\.py"):
        get_config("common/digits.py")


def test_nothing_outside_the_configs_is_a_config():
    outside = "../setup.py"
    with pytest.raises(FileNotFoundError, match="no config"):
        get_config_file(outside)
    assert config_root().name == "configs"
