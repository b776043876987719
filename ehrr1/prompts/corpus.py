"""Training texts of a tokenizer: training patients' records, questions and answers."""

from collections import Counter
from collections.abc import Sequence

from ehrr1.prompts.dataset import rank
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.wording import BETWEEN, OURS, Wording
from ehrr1.records.schema import TABLES
from ehrr1.tasks.samples import Prepared, Sample

FIXED_TEXTS = 1000
"""Weight of each fixed text of this project, above that of all but very frequent items."""

ANSWERS = 4
"""Weight of an answer, so that an item of an answer becomes one token."""


def corpus(
    prepared: Prepared,
    samples: Sequence[Sample],
    fixed: Sequence[str],
    contexts: int = 1500,
    seed: int = 0,
    style: Wording = OURS,
) -> Counter[str]:
    """Return the texts of `samples` and the weight of each.

    The texts are the events of `contexts` contexts, each once, all answers and all questions.
    `fixed` are further texts that the model will read or write (the headings of a chain).
    """
    by_context = {sample.context_id: sample for sample in samples}
    chosen = sorted(by_context, key=lambda context_id: rank(seed, context_id))[:contexts]
    events = {event for name in chosen for event in prepared.context(by_context[name])}
    texts = Counter(style.printed(event) + BETWEEN for event in events)
    for sample in samples:
        texts[answer_text(sample.target)] += ANSWERS
    own = {sample.task: style.own(sample) for sample in samples}
    questions = [
        style.asked(task, think=think, own=own[task])
        for task in sorted(own)
        for think in (True, False)
    ]
    headings = [table.heading for table in TABLES.values()]
    roles = ["system\n", "user\n", "assistant\n", "\n", "\n\n", "yes", "no"]
    for text in (style.system, *questions, *headings, *roles, *fixed):
        texts[text] += FIXED_TEXTS
    return texts
