"""The start of a model that learns from nothing: what goes together is alike."""

import copy
import random

import numpy as np
import torch

from ehrr1.models.tiny_init import embed_by_cooccurrence, token_vectors
from tests.test_models import small

GROUPS, WORDS, COMMON = 4, 10, 5


def records(count: int = 400) -> list[set[int]]:
    """Records of one of a few illnesses: three of its words, and words of all."""
    generator = random.Random(0)
    found = []
    for _ in range(count):
        group = generator.randrange(GROUPS)
        own = generator.sample(range(WORDS), 3)
        found.append({COMMON + group * WORDS + word for word in own} | set(range(COMMON)))
    return found


def test_tokens_of_the_same_records_are_alike_and_common_ones_say_nothing() -> None:
    vectors, told = token_vectors(records(), COMMON + GROUPS * WORDS + 3, 8, seed=0)
    words = vectors[COMMON:-3].reshape(GROUPS, WORDS, 8)
    middles = words.mean(axis=1)
    likeness = np.einsum("gwd,hd->gwh", words, middles)
    assert (likeness.argmax(axis=2) == np.arange(GROUPS)[:, None]).all()
    assert told[:COMMON].max() < 0.2 < 0.5 < told[COMMON:-3].min()
    assert (told[-3:] == 0).all(), "tokens that no record has say nothing"


def test_embeddings_keep_their_scale_and_depend_on_the_seed_only() -> None:
    model, _ = small()
    before = model.get_input_embeddings().weight.std().item()
    twin = copy.deepcopy(model)
    for one in (model, twin):
        embed_by_cooccurrence(one, records(), share=0.9, seed=0)
    first, second = (one.get_input_embeddings().weight for one in (model, twin))
    assert torch.equal(first, second)
    assert 0.7 < first.std().item() / before < 1.3
    alike = torch.nn.functional.cosine_similarity(first[:COMMON, None], first[None, :COMMON], -1)
    assert alike.min() > 0.5, "what stands in every record is one direction"


def test_attention_begins_by_passing_on_what_it_reads() -> None:
    model, _ = small()
    gain = 3.0  # of conf/model/tiny.yaml
    for layer in model.model.layers:
        attention = layer.self_attn
        both = attention.o_proj.weight @ attention.v_proj.weight
        torch.testing.assert_close(both, gain * torch.eye(len(both)), atol=1e-4, rtol=0)
