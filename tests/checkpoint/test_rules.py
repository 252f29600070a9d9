import torch

from detrx.checkpoint.rules import Ignore, Rename, Report, Split, apply_rules, pack


def apply(source, rules, names):
    report = Report("test")
    return apply_rules(source, rules, names, report), report


def test_rename_and_copy():
    rules = [Rename(r"a\.(\d+)\.(.+)", r"layers.\1.\2"), Rename(r"head\.(.+)", r"heads.0.\1", r"heads.1.\1")]
    source = {"a.3.weight": torch.arange(3.0), "head.bias": torch.ones(2)}
    converted, report = apply(source, rules, ["layers.3.weight", "heads.0.bias", "heads.1.bias"])
    assert converted.keys() == {"layers.3.weight", "heads.0.bias", "heads.1.bias"}
    assert converted["layers.3.weight"] is source["a.3.weight"]
    assert torch.equal(converted["heads.1.bias"], torch.ones(2))
    assert not report.problems


def test_the_first_rule_that_matches_the_whole_key_counts():
    rules = [Rename(r"a", "whole"), Rename(r"a\.b", "first"), Rename(r"a\..*", "second")]
    converted, _ = apply({"a.b": torch.ones(1)}, rules, ["whole", "first", "second"])
    assert converted.keys() == {"first"}


def test_split_and_pack_invert_each_other():
    q, k, v = torch.randn(3, 4, 5)
    packed, report = apply(
        {"x.v": v, "x.q": q, "x.k": k}, pack([r"(.+)\.q", r"(.+)\.k", r"(.+)\.v"], r"\1.qkv"), ["x.qkv"]
    )
    assert torch.equal(packed["x.qkv"], torch.cat([q, k, v]))
    (piece,) = report.pieces["x.k"]
    assert torch.equal(piece.of_ours(packed["x.qkv"]), k)
    split, _ = apply(packed, [Split(r"(.+)\.qkv", [r"\1.q", r"\1.k", r"\1.v"])], ["x.q", "x.k", "x.v"])
    assert torch.equal(split["x.q"], q) and torch.equal(split["x.k"], k) and torch.equal(split["x.v"], v)


def test_split_along_columns():
    converted, report = apply(
        {"e": torch.arange(8.0).view(2, 4)}, [Split("e", ["left", "right"], dim=1)], ["left", "right"]
    )
    assert converted["right"].tolist() == [[2, 3], [6, 7]]
    assert [piece.of_source(torch.arange(8.0).view(2, 4)).shape for piece in report.pieces["e"]] == [(2, 2), (2, 2)]


def test_split_into_rows_of_given_numbers():
    rule = Split("e", ["first", "second", "rest"], rows=[1, 2, 4])
    for count in (7, 9):  # a tensor of another length shows in the last part
        converted, _ = apply({"e": torch.arange(count)}, [rule], ["first", "second", "rest"])
        assert [each.tolist() for each in converted.values()] == [[0], [1, 2], [*range(3, count)]]


def test_every_problem_is_reported():
    rules = [
        Ignore(r".*\.num_batches_tracked", "counts steps"),
        Rename("(alias|name)", "name"),
        Rename("more", "nowhere"),
        *pack(["q", "k"], "qk"),
        *pack(["v", "w"], "vw"),
    ]
    source = {
        "bn.num_batches_tracked": torch.zeros(1),
        "name": torch.zeros(2),
        "alias": torch.ones(2),
        "more": torch.ones(1),
        "odd": torch.ones(1),
        "k": torch.ones(1),
        "v": torch.ones(1, 2),
        "w": torch.ones(1, 3),
    }
    converted, report = apply(source, rules, ["name", "qk", "vw"])
    assert converted.keys() == {"name"}
    assert torch.equal(converted["name"], torch.zeros(2))
    assert report.ignored == {"bn.num_batches_tracked": "counts steps"}
    assert report.problems == [
        "odd has no counterpart in the model",
        "more would be nowhere, not in the model",
        "alias differs from another key for name",
        "qk is not in the checkpoint in equal parts",
        "vw is not in the checkpoint in equal parts",
    ]


def test_aliases_of_equal_value_are_fine():
    converted, report = apply(
        {"name": torch.ones(2), "alias": torch.ones(2)}, [Rename("(alias|name)", "name")], ["name"]
    )
    assert torch.equal(converted["name"], torch.ones(2)) and not report.problems
