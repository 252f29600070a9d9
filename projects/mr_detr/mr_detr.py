"""Mr. DETR: beside the one-to-one queries, the same queries pass the decoder on one-to-many routes in training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from detrx.errors import InvalidInputError
from detrx.layers import MixtureFFN
from detrx.modeling import (
    Branch,
    CrossEntropyLoss,
    Denoising,
    DetectionTransformer,
    EncoderProposals,
    MatchingQuality,
    Method,
    Predictions,
    QueryContent,
    QueryGroup,
    QueryTokens,
    Route,
    Step,
    Supervision,
)
from detrx.modeling.heads import box_head, class_head
from detrx.modeling.losses import Loss

from .assignment import VotingAssigner

COMPONENTS = ("self_attn", "cross_attn", "ffn")

COMBINATIONS: dict[str, tuple[str, ...]] = {
    "shared": ("shared",),
    "sa": ("self_attn",),
    "ca": ("cross_attn",),
    "ffn": ("ffn",),
    "sa+ca": ("self_attn+cross_attn",),
    "sa+ffn": ("self_attn+ffn",),
    "ca+ffn": ("cross_attn+ffn",),
    "sa+ca+ffn": ("self_attn+cross_attn+ffn",),
    "sa,ca": ("self_attn", "cross_attn"),
    "sa,ffn": ("self_attn", "ffn"),
    "ca,ffn": ("cross_attn", "ffn"),
    "sa,ca,ffn": ("self_attn", "cross_attn", "ffn"),
}
"""`routes` of Table I of the paper: every choice of own components in one auxiliary route, or one route for each."""

# Suffixes of the losses of queries, and of denoising queries and proposals, in the published code; "gate" stands for
# "ffn" where the FFN is a mixture of experts.
_PUBLISHED_SUFFIXES = {"instruction": ("_group", "_o2m"), "ffn": ("_sep", "_sep"), "gate": ("_sep", "_sep")}


class AuxiliaryRoute(nn.Module):
    """What an auxiliary route has to itself: components of every decoder layer, and heads of the encoder.

    Args:
        name: own components of the route, joined by "+"; "shared" for none. "instruction" stands for learned tokens
            and a LayerNorm after self-attention, "gate" for the gate of the FFN's experts.
        num_tokens: instruction tokens of every layer.
        layers: the decoder's layers, whose shapes the components take.
    """

    def __init__(self, name: str, num_tokens: int, layers: Sequence[nn.Module]):
        super().__init__()
        own = () if name == "shared" else name.split("+")
        if unknown := set(own) - {*COMPONENTS, "instruction", "gate"}:
            raise InvalidInputError(
                f'route {name!r} has unknown components {sorted(unknown)}; give "shared" or a combination of '
                f'{", ".join(COMPONENTS)}, instruction and gate, joined by "+"'
            )
        if len(set(own)) < len(own):
            raise InvalidInputError(f"route {name!r} names a component twice")
        if "gate" in own:
            self.check_gate(name, own, layers)
        self.own = nn.ModuleDict()
        for component in own:
            if component == "instruction":
                dim = layers[0].norm1.normalized_shape[0]
                self.own["tokens"] = nn.ModuleList(QueryTokens(num_tokens, dim) for _ in layers)
                self.own["norm1"] = self.copies(layer.norm1 for layer in layers)
            elif component == "gate":
                self.own["gate"] = self.copies(layer.ffn.gate for layer in layers)
            else:
                self.own[component] = self.copies(getattr(layer, component) for layer in layers)

    @staticmethod
    def check_gate(name: str, own: Sequence[str], layers: Sequence[nn.Module]) -> None:
        if "ffn" in own:
            raise InvalidInputError(f'route {name!r}: an own "ffn" has a gate of its own; leave out "gate"')
        for index, layer in enumerate(layers):
            if not isinstance(layer.ffn, MixtureFFN):
                raise InvalidInputError(
                    f"route {name!r} needs experts to choose from, but the FFN of decoder layer {index} is "
                    f'{type(layer.ffn).__name__}; set model.decoder.layer.ffn to a MixtureFFN, or take "ffn"'
                )

    @staticmethod
    def copies(modules: Iterable[nn.Module]) -> nn.ModuleList:
        """Initialised anew."""
        copies = nn.ModuleList(copy.deepcopy(module) for module in modules)
        for module in copies:
            module.reset_parameters()
        return copies

    def add_encoder_heads(self, source: EncoderProposals, initial_size_logit: float) -> None:
        dim = source.class_head.in_features
        self.class_head = class_head(dim, source.class_head.out_features)
        self.box_head = box_head(dim, initial_size_logit)

    def route(self, tokens: bool = True) -> Route | None:
        """For the decoder; None where everything is shared."""
        own = {key: list(modules) for key, modules in self.own.items() if tokens or key != "tokens"}
        return Route(**own) if own else None


class MrDETR(Method):
    """Instructive multi-route training (arXiv 2412.10028).

    In training the main queries also pass the decoder on auxiliary routes, which share with the main one whatever they
    do not have to themselves, the heads included, and are supervised one-to-many. Queries of other methods that stand
    before this one and see the main queries (denoising) accompany them on every route.

    Args:
        routes: the auxiliary routes, by what they have to themselves: "instruction" (learned tokens in self-attention
            and a LayerNorm after it), "self_attn", "cross_attn", "ffn", "gate" (another choice of the same experts,
            where the decoder's FFN is a `MixtureFFN`), several of these joined by "+", or "shared" for nothing.
            `COMBINATIONS` has those of the paper's study.
        num_instruction_tokens: learned tokens of each decoder layer.
        top_k: queries that a ground truth takes, at most.
        alpha: weight of the score in the quality of a match; that of the IoU is 1 - alpha.
        threshold: quality from which a query may be a match (tau).
        weight: factor of the losses of the auxiliary routes' queries.
        losses: of the auxiliary routes; None: those of the last layer of the main group.
        own_proposals: routes that choose their queries among the encoder's proposals by a class and box head of their
            own, in two-stage detectors; the others start as the main queries do.
        initial_size_logit: first width and height output of these box heads; -2 in the published code.
    """

    def __init__(
        self,
        num_instruction_tokens: int = 10,
        top_k: int = 6,
        alpha: float = 0.3,
        threshold: float = 0.4,
        routes: Sequence[str] = ("instruction", "ffn"),
        weight: float = 1.0,
        losses: Sequence[Loss] | None = None,
        own_proposals: Sequence[str] = ("instruction",),
        initial_size_logit: float = 0.0,
    ):
        super().__init__()
        for key, value in (("num_instruction_tokens", num_instruction_tokens), ("top_k", top_k)):
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{key} must be a whole number, at least 1, got {value!r}")
        for key, value in (("alpha", alpha), ("threshold", threshold)):
            if not 0 <= value <= 1:
                raise InvalidInputError(f"{key} must be in [0, 1], got {value}")
        if weight < 0:
            raise InvalidInputError(f"weight must not be negative, got {weight}")
        for key, names in (("routes", routes), ("own_proposals", own_proposals)):
            if isinstance(names, str):
                raise InvalidInputError(
                    f'{key} must be a list of routes, such as ["instruction", "ffn"], got {names!r}'
                )
        if not routes or len(set(routes)) < len(routes):
            raise InvalidInputError(f"routes must be at least one and all different, got {list(routes)}")
        if unknown := set(own_proposals) - {*routes, "instruction"}:
            raise InvalidInputError(f"own_proposals has {sorted(unknown)}, but the routes are {list(routes)}")
        self.num_instruction_tokens = num_instruction_tokens
        self.assigner = VotingAssigner(MatchingQuality(alpha, 1 - alpha), top_k, threshold)
        self.weight = weight
        self.losses = None if losses is None else tuple(losses)
        self.own_proposals = tuple(own_proposals)
        self.initial_size_logit = initial_size_logit
        self.route_names = tuple(routes)
        self.routes = nn.ModuleList()
        self.encoder_supervision: Supervision | None = None

    def attach(self, model: DetectionTransformer) -> None:
        position = next(i for i, method in enumerate(model.methods) if method is self)
        later = list(model.methods)[position + 1 :]
        if after := [type(method).__name__ for method in later if isinstance(method, Denoising)]:
            raise InvalidInputError(
                f"in model.methods, {', '.join(after)} must stand before MrDETR, to go on its routes, too"
            )
        if model.criterion is not None and self.losses is None:
            self.losses = model.criterion.of_last_layer("main").losses
        if any(isinstance(loss, CrossEntropyLoss) for loss in self.losses or ()):
            raise InvalidInputError("MrDETR needs a detector with a sigmoid for each class, and this one has a softmax")
        two_stage = isinstance(model.query_source, EncoderProposals)
        for name in self.route_names:
            route = AuxiliaryRoute(name, self.num_instruction_tokens, model.decoder.layers)
            if two_stage and name in self.own_proposals:
                route.add_encoder_heads(model.query_source, self.initial_size_logit)
                if model.criterion is not None:
                    self.encoder_supervision = model.criterion.of_last_layer("encoder")
            self.routes.append(route)

    def branches(self, step: Step) -> list[Branch]:
        branches = []
        for name, route in zip(self.route_names, self.routes, strict=True):
            of_queries, of_others = _PUBLISHED_SUFFIXES.get(name, ("_" + name.replace("+", "_"),) * 2)
            group, predictions, supervisions = self.start(name, route, step, of_others)
            supervisions.append(
                Supervision(name, self.assigner, self.losses, suffix=of_queries, numbering="all", weight=self.weight)
            )
            branches.append(Branch(group, supervisions, predictions))
            for other in step.branches:
                if other.group is not None and "main" in other.group.sees and other.group.route is None:
                    branches.append(accompany(other, name, route.route(tokens=False), of_others))
        return branches

    def start(
        self, name: str, route: AuxiliaryRoute, step: Step, suffix: str
    ) -> tuple[QueryGroup, dict[str, Predictions], list[Supervision]]:
        """The queries of a route, and predictions and supervision of the heads that chose them, if it has its own."""
        if not hasattr(route, "class_head"):
            return replace(step.main, name=name, route=route.route()), {}, []
        source = step.model.query_source
        proposals = source.propose(step.memory, route.class_head, route.box_head)
        chosen = proposals.take(source.rank(proposals, source.num_queries))
        supervised = chosen if source.supervise == "chosen" else proposals
        made = step.main.content if isinstance(source.content, QueryContent) else None
        group = replace(source.group(chosen, source, made), name=name, route=route.route())
        supervision = self.encoder_supervision
        supervision = supervision.replace(group=f"encoder_{name}", suffix=supervision.suffix + suffix)
        return group, {supervision.group: supervised.predictions}, [supervision]


def accompany(branch: Branch, name: str, route: Route | None, suffix: str) -> Branch:
    """A copy of a branch that sees the main queries, to go with those of the route `name` instead."""
    group = replace(
        branch.group,
        name=f"{branch.group.name}_{name}",
        route=route,
        sees=tuple(name if other == "main" else other for other in branch.group.sees),
    )
    of_group = [each for each in branch.supervisions if each.group == branch.group.name]
    return Branch(group, [each.replace(group=group.name, suffix=each.suffix + suffix) for each in of_group])
