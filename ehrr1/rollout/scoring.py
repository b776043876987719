"""What a model would say next, read from one prefill: no token is generated."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ehrr1.models.logprobs import hidden_states
from ehrr1.progress import track
from ehrr1.prompts.forest import collate
from ehrr1.prompts.trees import Branch, Tree

END_MARK = 0


@torch.inference_mode()
def next_token_logprobs(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    max_batch_tokens: int = 8192,
    description: str | None = None,
) -> list[Tensor]:
    """For each tree the log-probabilities behind each branch's prompt, [branches, vocabulary].

    Completions are ignored. A record's questions share one prefill; trees of like length share
    batches of at most `max_batch_tokens`.
    """
    training = model.training
    model.eval()
    order = sorted(range(len(trees)), key=lambda index: len(trees[index]))
    groups: list[list[int]] = []
    for index in order:
        if not groups or len(trees[index]) * (len(groups[-1]) + 1) > max_batch_tokens:
            groups.append([])
        groups[-1].append(index)
    found: dict[int, Tensor] = {}
    for group in track(groups, description) if description else groups:
        found.update(zip(group, _batch(model, [trees[i] for i in group]), strict=True))
    model.train(training)
    return [found[index] for index in range(len(trees))]


def _batch(model: PreTrainedModel, trees: Sequence[Tree]) -> Sequence[Tensor]:
    # one completion token of any kind marks the place whose prediction is read
    marked = [
        Tree(tree.trunk, [Branch(b.sample_id, b.prompt, [END_MARK]) for b in tree.branches])
        for tree in trees
    ]
    forest = collate(marked).to(model.device)
    states = hidden_states(model, forest)
    logprobs = model.get_output_embeddings()(states).float().log_softmax(-1)
    return logprobs.split([len(tree.branches) for tree in trees])
