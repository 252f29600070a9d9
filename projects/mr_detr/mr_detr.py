"""Mr. DETR: in training, the main queries also pass the decoder on auxiliary routes with one-to-many assignment."""

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
"""`routes` of the paper's Table I: each set of own components in one auxiliary route, or with one route each."""

# Loss suffixes of the published code: of queries, and of denoising queries and proposals. "gate" takes the suffixes of
# "ffn", which it replaces if the FFN is a mixture of experts.
_PUBLISHED_SUFFIXES = {"instruction": ("_group", "_o2m"), "ffn": ("_sep", "_sep"), "gate": ("_sep", "_sep")}


class AuxiliaryRoute(nn.Module):
    """An auxiliary route's own modules: components of every decoder layer, and heads of the encoder.

    Args:
        name: own components of the route, joined by "+"; "shared" for none. "instruction" means learned tokens and a
            LayerNorm after self-attention, "gate" the gate of the FFN's experts.
        num_tokens: number of instruction tokens per layer.
        layers: the decoder's layers, of which the components are reinitialised copies.
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
            raise InvalidInputError(f'route {name!r}: an own "ffn" already has its own gate; leave out "gate"')
        for index, layer in enumerate(layers):
            if not isinstance(layer.ffn, MixtureFFN):
                raise InvalidInputError(
                    f"route {name!r} needs experts to choose from, but the FFN of decoder layer {index} is "
                    f'{type(layer.ffn).__name__}; set model.decoder.layer.ffn to a MixtureFFN, or use "ffn"'
                )

    @staticmethod
    def copies(modules: Iterable[nn.Module]) -> nn.ModuleList:
        """Copies with newly initialised parameters."""
        copies = nn.ModuleList(copy.deepcopy(module) for module in modules)
        for module in copies:
            module.reset_parameters()
        return copies

    def add_encoder_heads(self, source: EncoderProposals, initial_size_logit: float) -> None:
        dim = source.class_head.in_features
        self.class_head = class_head(dim, source.class_head.out_features)
        self.box_head = box_head(dim, initial_size_logit)

    def route(self, tokens: bool = True) -> Route | None:
        """The route for the decoder; None if all components are shared."""
        own = {key: list(modules) for key, modules in self.own.items() if tokens or key != "tokens"}
        return Route(**own) if own else None


class MrDETR(Method):
    """Instructive multi-route training (arXiv 2412.10028).

    In training, the main queries also pass the decoder on auxiliary routes with one-to-many supervision. These share
    all components with the main route, including the heads, except their own ones. Queries of preceding methods that
    see the main queries (denoising) accompany them on every route.

    Args:
        routes: auxiliary routes, named by their own components: "instruction" (learned tokens in self-attention and a
            LayerNorm after it), "self_attn", "cross_attn", "ffn", "gate" (another gate for the same experts, if the
            decoder's FFN is a `MixtureFFN`), several of these joined by "+", or "shared" for none. `COMBINATIONS` lists
            those of the paper's study.
        num_instruction_tokens: number of learned tokens per decoder layer.
        top_k: maximum number of queries per ground truth.
        alpha: weight of the score in the quality of a match; the IoU has the weight 1 - alpha.
        threshold: minimum quality of a vote (tau).
        weight: factor of the losses of the auxiliary routes' queries.
        losses: losses of the auxiliary routes; None: those of the last layer of the main group.
        own_proposals: routes that select their queries among the encoder's proposals with their own class and box head,
            in two-stage detectors; the other routes start from the main queries.
        initial_size_logit: initial width and height output of these box heads; -2 in the published code.
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
            raise InvalidInputError(f"{', '.join(after)} must come before MrDETR in model.methods, to use its routes")
        if model.criterion is not None and self.losses is None:
            self.losses = model.criterion.of_last_layer("main").losses
        if any(isinstance(loss, CrossEntropyLoss) for loss in self.losses or ()):
            raise InvalidInputError("MrDETR needs a detector with a sigmoid for each class, but this one has a softmax")
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
        """The queries of a route, and the predictions and supervision of its own proposal heads, if any."""
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
    """A copy of a branch that sees the main queries, which instead sees those of the route `name`."""
    group = replace(
        branch.group,
        name=f"{branch.group.name}_{name}",
        route=route,
        sees=tuple(name if other == "main" else other for other in branch.group.sees),
    )
    of_group = [each for each in branch.supervisions if each.group == branch.group.name]
    return Branch(group, [each.replace(group=group.name, suffix=each.suffix + suffix) for each in of_group])
