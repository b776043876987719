"""Next-token log-probabilities from one prefill; no token is generated."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ehrr1.models.logprobs import CHUNK, hidden_states
from ehrr1.prompts.forest import collate
from ehrr1.prompts.trees import Branch, Tree

END_MARK = 0


@torch.inference_mode()
def answer_logprobs(
    model: PreTrainedModel, trees: Sequence[Tree], ids: Sequence[int]
) -> Iterator[NDArray[np.float64]]:
    """Yield, for each tree, the log-probabilities of `ids` behind each branch, [branches, ids].

    All trees form one batch; completions are ignored. The questions on a record share one prefill.
    Logits are computed in chunks, so that those of a large vocabulary never fill the memory.
    """
    # one completion token of any kind marks the place whose prediction is read
    marked = [
        Tree(tree.trunk, [Branch(b.sample_id, b.prompt, [END_MARK]) for b in tree.branches])
        for tree in trees
    ]
    states = hidden_states(model, collate(marked).to(model.device))
    head, wanted = model.get_output_embeddings(), torch.tensor(ids, device=states.device)
    found = []
    for some in states.split(max(1, CHUNK // model.config.vocab_size)):
        logits = head(some).float()
        found.append(logits[:, wanted] - logits.logsumexp(-1, keepdim=True))
    values = torch.cat(found).double().cpu().numpy()
    ends = np.cumsum([len(tree.branches) for tree in trees])[:-1]
    return iter(np.split(values, ends))
