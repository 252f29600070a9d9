"""Neck, tokens and query sources."""

import pytest
import torch
from torch import nn

from detrx.layers import SinePositionEmbedding
from detrx.modeling import ChannelMapper, EncoderProposals, LearnedQueries, Tokenizer
from detrx.modeling.tokens import masks_of_levels, pad_features


def make_memory(padded: bool):
    features = [torch.randn(2, 16, 8, 10), torch.randn(2, 16, 4, 5)]
    masks = None
    if padded:
        mask = torch.zeros(2, 32, 40, dtype=torch.bool)
        mask[1, 16:], mask[1, :, 24:] = True, True
        masks = masks_of_levels(mask, features)
    return Tokenizer(SinePositionEmbedding(8), 16, 2)(features, masks)


def test_neck_adds_coarser_levels():
    neck = ChannelMapper(["res4", "res5"], [6, 12], out_channels=32, num_levels=4, num_groups=8)
    maps = neck({"res4": torch.randn(1, 6, 16, 16), "res5": torch.randn(1, 12, 8, 8)})
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2)]
    with pytest.raises(ValueError, match="differ in length"):
        ChannelMapper(["res4"], [6, 12], 32, 2)
    with pytest.raises(ValueError, match="num_levels is 1"):
        ChannelMapper(["res4", "res5"], [6, 12], 32, 1)


def test_tokens_know_their_padding():
    memory = make_memory(padded=True)
    assert memory.shapes == ((8, 10), (4, 5)) and memory.level_start_index.tolist() == [0, 80]
    torch.testing.assert_close(memory.valid_ratios[1], torch.tensor([[0.6, 0.5], [0.6, 0.5]]))
    torch.testing.assert_close(memory.valid_ratios[0], torch.ones(2, 2))
    assert (~memory.padding_mask[1]).sum() == 4 * 6 + 2 * 3
    centres, levels = memory.cell_centres()
    inside = centres[1][~memory.padding_mask[1]]
    assert inside.min() > 0 and inside.max() < 1 and levels.tolist() == [0] * 80 + [1] * 20
    # The last valid cell of the first level: column 5 of 6, row 3 of 4.
    assert centres[1, 3 * 10 + 5].tolist() == pytest.approx([5.5 / 6, 3.5 / 4])


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match="gives 1 levels, but num_levels is 2"):
        Tokenizer(SinePositionEmbedding(8), 16, 2)([torch.randn(1, 16, 4, 4)], None)


def test_learned_queries():
    group, predictions = LearnedQueries(5, 16)(make_memory(padded=False))
    assert group.content.shape == group.pos.shape == (2, 5, 16) and group.reference.shape == (2, 5, 2)
    assert ((group.reference > 0) & (group.reference < 1)).all() and not predictions


@pytest.mark.parametrize("content", EncoderProposals.CONTENT)
def test_proposals_come_from_the_best_tokens_inside_the_image(content: str):
    source = EncoderProposals(6, 16, 3, content=content, rank_by="max", base_size=0.1)
    nn.init.normal_(source.class_head.weight)
    memory = make_memory(padded=True)
    group, predictions = source(memory)
    encoder = predictions["encoder"]
    assert encoder.logits.shape == (1, 2, 100, 3) and encoder.boxes.shape == (1, 2, 100, 4)
    _, usable = source.anchors(memory)
    assert (encoder.boxes[0][~usable] == 1).all() and not (usable & memory.padding_mask).any()
    best = encoder.logits[0].amax(-1).topk(6, dim=1).indices
    torch.testing.assert_close(group.reference, encoder.boxes[0].gather(1, best[..., None].expand(-1, -1, 4)))
    assert group.content.shape == group.pos.shape == (2, 6, 16) and not group.reference.requires_grad


def test_no_more_queries_than_tokens(caplog: pytest.LogCaptureFixture):
    """Further groups get the next proposals, and those after the last are the best ones again."""
    source = EncoderProposals(70, 16, 3, content="learned", rank_by="max")
    nn.init.normal_(source.class_head.weight)
    memory = make_memory(padded=False)
    (*_, last), predictions = source.groups(memory, [source.further(50), source.further(200)])
    best = predictions["encoder"].logits[0].amax(-1).argsort(dim=1, descending=True)
    (main, second, third), _ = source.groups(memory, [source.further(50), source.further(200)])
    order = [best[:, :70], torch.cat([best[:, 70:], best[:, :20]], dim=1), torch.cat([best[:, 20:], best[:, :20]], 1)]
    for group, chosen in zip((main, second, third), order, strict=True):
        boxes = predictions["encoder"].boxes[0].gather(1, chosen[..., None].expand(-1, -1, 4))
        torch.testing.assert_close(group.reference, boxes)
        assert group.content.shape == group.pos.shape == (2, len(chosen[0]), 16) and group.padding is None
    assert last.content.shape == (2, 100, 16)
    assert [record.message for record in caplog.records] == [
        "the query source and methods ask for 320 queries, but the images of this batch have only 100 tokens: no group "
        "of queries is larger than that, and groups share proposals. Use larger images, more levels or fewer queries"
    ]


def test_anchor_sizes_double_with_the_level():
    anchors, _ = EncoderProposals(5, 16, 3, base_size=0.1).anchors(make_memory(padded=False))
    assert anchors[0, 0].tolist() == pytest.approx([0.05, 0.0625, 0.1, 0.1])
    assert anchors[0, 80].tolist() == pytest.approx([0.1, 0.125, 0.2, 0.2])


def test_proposal_errors():
    with pytest.raises(ValueError, match="content must be one of"):
        EncoderProposals(5, 16, 3, content="magic")
    with pytest.raises(ValueError, match="rank_by must be one of"):
        EncoderProposals(5, 16, 3, rank_by="luck")


def test_padded_features_keep_every_image():
    images = [[torch.rand(3, 4, 6), torch.rand(3, 2, 3)], [torch.rand(3, 8, 2), torch.rand(3, 4, 1)]]
    features, masks = pad_features(images)
    assert [tuple(f.shape) for f in features] == [(2, 3, 8, 6), (2, 3, 4, 3)]
    for level, (feature, mask) in enumerate(zip(features, masks, strict=True)):
        for index in range(2):
            torch.testing.assert_close(feature[index][:, ~mask[index]].view(3, -1), images[index][level].flatten(1))
            assert not feature[index][:, mask[index]].any()
