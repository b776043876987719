"""Baselines learn what is there, from many samples or a few, and say nothing where they cannot."""

import pickle
from datetime import timedelta

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from ehrr1.evaluation.baselines import contexts
from ehrr1.evaluation.baselines.bag_table import Bags, BagTable
from ehrr1.evaluation.baselines.contexts import PromptReader, last_items, read_contexts
from ehrr1.evaluation.baselines.decisions import (
    DecisionData,
    Frequency,
    Ranking,
    decision_rows,
    linear,
    neighbours,
)
from ehrr1.evaluation.baselines.features import Bag, bag_of_events, names_of, summary
from ehrr1.evaluation.baselines.risk import Learner, RiskData, boosting, logistic, risk_rows
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.records.events import Event
from ehrr1.tasks.samples import Prepared, Sample
from tests.test_graph import event, sample

TASK = "Inpatient_Mortality"
BOTH = pytest.mark.parametrize("learner", [logistic, boosting])


def patients(number: int, seed: int) -> tuple[list[Sample], dict[str, Bag]]:
    """Lactate is measured oftener in those who die; the number of sodiums, far larger, and the age
    say nothing."""
    generator = np.random.default_rng(seed)
    samples, bags = [], {}
    for one in range(number):
        dies = bool(generator.random() < 0.3)
        own = sample(one + 10_000 * seed, TASK, "yes" if dies else "no")
        lactates = float(generator.poisson(4 if dies else 1))
        sodiums = float(generator.poisson(300))
        bags[own.sample_id] = Bag(
            {"labevents/lactate": lactates, "labevents/sodium": sodiums},
            {"patients.Anchor_Age latest": float(generator.integers(18, 90))},
        )
        samples.append(own)
    return samples, bags


def stored(bags: dict[str, Bag]) -> Bags:
    table = BagTable()
    return Bags(table, {name: table.add(bag) for name, bag in bags.items()})


def auroc(learner: Learner, train: list[Sample], test: list[Sample], bags: Bags) -> float:
    rows = risk_rows(learner, train, [], test, bags, 400, 0)
    assert [row["sample_id"] for row in rows] == [one.sample_id for one in test]
    said = [row["probability"] for row in rows]
    return float(roc_auc_score([one.target == ("yes",) for one in test], said))


@BOTH
def test_it_learns_what_tells_the_classes_apart_and_is_honest(learner: Learner) -> None:
    train, bags = patients(1500, 0)
    test, others = patients(500, 1)
    lactate = [others[one.sample_id].counts["labevents/lactate"] for one in test]
    true = [one.target == ("yes",) for one in test]
    both = stored(bags | others)
    assert auroc(learner, train, test, both) > roc_auc_score(true, lactate) - 0.03
    rows = risk_rows(learner, train, [], test, both, 400, 0)
    assert np.mean([row["probability"] for row in rows]) == pytest.approx(np.mean(true), abs=0.05)


@BOTH
def test_a_numeric_threshold_is_seen_where_counts_are_equal(learner: Learner) -> None:
    generator = np.random.default_rng(0)
    samples, seen, counts = [], {}, {}
    for number in range(900):
        latest = float(generator.uniform(1, 7))
        own = sample(number, TASK, "yes" if latest > 4 else "no")
        samples.append(own)
        time = own.prediction_time
        values = [(time - timedelta(hours=6), float(generator.uniform(1, 7))), (time, latest)]
        names = names_of("labevents/lactate")
        numbers = dict(zip(names, summary(values), strict=False))
        counts[own.sample_id] = Bag({"labevents/lactate": 2.0})
        seen[own.sample_id] = Bag({"labevents/lactate": 2.0}, numbers)
    train, test = samples[:600], samples[600:]
    assert auroc(learner, train, test, stored(seen)) > 0.98
    assert auroc(learner, train, test, stored(counts)) == 0.5


def test_a_missing_number_is_no_zero_and_is_learnt() -> None:
    known = stored({f"{TASK}/0": Bag({}, {"k": 0.0}), f"{TASK}/1": Bag({"lab": 1.0}, {})})
    pair = [sample(0, TASK, "yes"), sample(1, TASK, "no")]
    matrix = known.matrix(pair, known.columns(pair, 10))
    np.testing.assert_array_equal(matrix, [[0, 0], [np.float32(np.log(2)), np.nan]])
    many = [sample(n, TASK, "yes" if n % 3 == 0 else "no") for n in range(300)]
    bags = {one.sample_id: Bag({}, {} if one.target == ("yes",) else {"k": 1.0}) for one in many}
    assert auroc(boosting, many[:200], many[200:], stored(bags)) == 1


def test_bag_counts_items_flags_words_and_summarises_numbers() -> None:
    first = event("labevents", 3, ["K", "Na"], Flag="abnormal", Valuenum="4")
    second = event("labevents", 9, ["K"], Valuenum="7")
    words = event("labevents", 10, ["Nitrite"], Valuenum="NEG")
    vitals = event("triage", 11, [""], Heartrate="-88.5", Chiefcomplaint="Pain")
    pressure = event("omr", 12, ["Blood Pressure"], Result_Value="120/80")
    found = bag_of_events([first, second, words, vitals, pressure])
    assert found.counts == {
        "labevents": 3,
        "labevents/K": 2,
        "labevents/K/abnormal": 1,
        "labevents/Na": 1,
        "labevents/Na/abnormal": 1,
        "labevents/Nitrite": 1,
        "labevents/Nitrite.Valuenum=neg": 1,
        "triage": 1,
        "triage.Chiefcomplaint=Pain": 1,
        "omr": 1,
        "omr/Blood Pressure": 1,
    }
    potassium = {key: v for key, v in found.numbers.items() if "/K." in key}
    assert potassium == {
        "labevents/K.Valuenum latest": 7,
        "labevents/K.Valuenum min": 4,
        "labevents/K.Valuenum max": 7,
        "labevents/K.Valuenum slope": 12,  # 3 in a quarter of a day
    }
    assert "labevents/Na.Valuenum slope" not in found.numbers
    assert found.numbers["triage.Heartrate latest"] == -88.5
    assert found.numbers["omr/Blood Pressure.Result_Value/2 latest"] == 80


def test_the_best_setting_is_that_of_the_lowest_log_loss_on_validation() -> None:
    nothing = np.zeros((0, 1))
    said = [(np.full(20, p), np.array([p])) for p in (0.9, 0.4, 0.6)]
    labels = np.arange(20) < 8
    data = RiskData(nothing, labels[:0], np.zeros((20, 1)), labels, np.zeros((1, 1)))
    assert data.best(iter(said))[0] == 0.4
    few = RiskData(nothing, labels[:0], np.zeros((20, 1)), np.arange(20) < 4, np.zeros((1, 1)))
    assert few.best(iter(said))[0] == 0.9  # too few of one class: the first setting


@BOTH
def test_a_few_examples_are_enough_to_answer(learner: Learner) -> None:
    pool, bags = patients(200, 0)
    few = [one for one in pool if one.target == ("yes",)][:4]
    few += [one for one in pool if one.target == ("no",)][:4]
    test, others = patients(200, 1)
    assert auroc(learner, few, test, stored(bags | others)) >= 0.5


def test_features_are_chosen_on_the_training_contexts_alone() -> None:
    train, bags = patients(100, 0)
    bags[train[0].sample_id].counts["rare"] = 1.0
    test, others = patients(20, 1)
    for bag in others.values():
        bag.counts["labevents/unseen"] = 5.0
    both = stored(bags | others)
    columns = both.columns(train, 2)
    names = {name for (_, name), n in both.table.ids.items() if n in columns.counts}
    assert names == {"labevents/lactate", "labevents/sodium"} and len(columns) == 3
    assert len(risk_rows(logistic, train, [], test, both, 2, 0)) == 20


@BOTH
def test_one_class_and_tasks_without_training(learner: Learner) -> None:
    train, bags = patients(50, 0)
    ones = [sample(n, "ICU_Stay_7day", "yes") for n in range(50)]
    known = stored(bags | {one.sample_id: Bag({"a": 1.0}) for one in ones})
    # of mortality it has learnt nothing
    (said,) = risk_rows(learner, ones, [], [ones[0], train[0]], known, 400, 0)
    assert said["task"] == "ICU_Stay_7day" and said["probability"] == 1.0
    assert said["prediction"] == "yes"


def test_frequency_leaves_out_discharge_notes() -> None:
    asked = [sample(0, "emar", "A"), sample(1, "discharge", "A long note.")]
    (said,) = Frequency(asked).predict(asked)
    assert said["task"] == "emar" and said["prediction"] == "a"


def drugs(number: int) -> tuple[list[Sample], Bags]:
    """A low potassium is answered by potassium and magnesium, a fever by an antibiotic."""
    samples, bags = [], {}
    for one in range(number):
        items = ("Potassium", "Magnesium") if one % 2 else ("Antibiotic",)
        bag = {"labevents/K/low": 1.0} if one % 2 else {"vitalsign/fever": 1.0}
        samples.append(sample(one, "emar", *items))
        bags[samples[-1].sample_id] = Bag({"labevents": float(1 + one % 3), **bag})
    return samples, stored(bags)


@pytest.mark.parametrize("learner", [neighbours, linear])
def test_decisions_follow_the_record(learner: Ranking) -> None:
    samples, bags = drugs(300)
    train, tune, test = samples[:200], samples[200:250], samples[250:]
    rows = decision_rows(learner, train, tune, test, bags, 400)
    assert [set(row["prediction"].split("\n")) for row in rows] == [
        {item.lower() for item in one.target} for one in test
    ]
    without = decision_rows(learner, train, [], test, bags, 400)  # training patients are divided
    assert [row["prediction"] for row in without] == [row["prediction"] for row in rows]


def test_the_threshold_is_that_of_the_best_f1_on_validation() -> None:
    bags = Bags(BagTable(), {})
    tune = [sample(0, "emar", "a", "b")]
    asked = [sample(1, "emar", "a")]
    data = DecisionData([], tune, asked, bags, 1, ["a", "b", "c"], np.zeros((0, 3)))
    scores = np.array([[0.5, 0.3, 0.1]])
    assert data.best(iter([(scores, scores)])) == [["a", "b"]]
    other = np.array([[0.1, 0.3, 0.5]])
    assert data.best(iter([(other, other), (scores, scores)])) == [["a", "b"]]


def test_copy_forward_repeats_the_last_such_event() -> None:
    record = [
        event("emar", 3, ["Heparin"]),
        event("emar", 5, ["Insulin", "Heparin", "Insulin"]),
        event("prescriptions", 6, ["Insulin"], Atc="A10"),
        event("labevents", 7, ["K"]),
    ]
    assert last_items(record, "emar") == ["Insulin", "Heparin"]
    assert last_items(record, "prescriptions_atc") == ["A10"]
    assert last_items(record, "next_event") == ["Labotary Test Events"]
    assert last_items(record, "radiology") == []
    asked = [sample(0, "emar", "x"), sample(1, "emar", "y")]
    rows = Frequency(asked).predict(asked, {asked[0].sample_id: ["Insulin", "Heparin"]})
    assert [row["prediction"] for row in rows] == ["Insulin\nHeparin", "x\ny"]


class Records(Prepared):
    """Three laboratory tests of one patient, the same context for all samples."""

    def __init__(self) -> None:
        pass

    def context(self, sample: Sample) -> list[Event]:
        return [event("labevents", hour, ["K"], Valuenum=str(hour)) for hour in (3, 5, 8)]


def test_cut_baselines_read_what_the_prompt_shows() -> None:
    tokenizer = train_tokenizer({"## Labotary Test Events\nPotassium yes no": 5}, 400)
    asked = [sample(0, TASK, "yes", context="c"), sample(1, "labevents", "K", context="c")]
    events = Records().context(asked[0])
    question = Question(asked[0].sample_id, TASK, think=False)
    limit = len(PromptBuilder(tokenizer, 100_000).tree(events[1:], 0, [question]))
    direct = PromptMode("direct")
    reader = PromptReader(PromptBuilder(tokenizer, limit), direct, direct)
    views = read_contexts(asked[:1], Records(), reader)
    whole, cut = (
        dict(zip(view.bags.table.ids, row.toarray()[0], strict=True))
        for view in (views[""], views["_cut"])
        for row in [view.bags.table.rows([view.bags.rows[asked[0].sample_id]])]
    )
    assert (
        whole[True, "labevents/K.Valuenum min"] == 3 and cut[True, "labevents/K.Valuenum min"] == 5
    )
    tiny = PromptReader(PromptBuilder(tokenizer, 3), direct, direct)
    assert tiny.cut_events(events, asked) == {one.sample_id: 3 for one in asked}
    assert read_contexts(asked, Records(), None)[""].repeated == {asked[1].sample_id: ["K"]}


def test_contexts_read_in_parts_are_those_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [sample(n, "labevents", "K", context=f"c{n % 3}") for n in range(6)]
    whole = read_contexts(asked, Records(), None)[""]
    monkeypatch.setattr(contexts, "CONTEXTS_AT_ONCE", 1)
    monkeypatch.setattr(contexts, "_prepared", lambda folder: Records())
    monkeypatch.setattr(
        contexts,
        "in_processes",
        lambda work, parts, *_: [pickle.loads(pickle.dumps(work))(part) for part in parts],
    )
    monkeypatch.setattr(Records, "folder", None, raising=False)
    parts = read_contexts(asked, Records(), None)[""]
    assert parts.repeated == whole.repeated and parts.bags.table.ids == whole.bags.table.ids
    for one in asked:
        rows = [view.bags.table.rows([view.bags.rows[one.sample_id]]) for view in (whole, parts)]
        np.testing.assert_array_equal(rows[0].toarray(), rows[1].toarray())


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    generator = np.random.default_rng(0)
    samples, bags = patients(300, 0)
    for bag in bags.values():
        bag.numbers.update({f"n{n}": float(generator.normal()) for n in range(40)})
    known, (decided, drugged) = stored(bags), drugs(120)
    results = []
    for threads in (1, 4):
        with threadpool_limits(limits=threads):
            results.append([
                *(risk_rows(x, samples[:200], [], samples[200:], known, 400, 0)
                  for x in (logistic, boosting)),
                *(decision_rows(x, decided[:80], [], decided[80:], drugged, 400)
                  for x in (neighbours, linear)),
            ])  # fmt: skip
    assert results[0] == results[1]


def test_logistic_regression_does_not_depend_on_the_order_of_sums() -> None:
    """Another order of features, as another processor's kernels, sums in another order."""
    generator = np.random.default_rng(0)
    features = np.log1p(generator.poisson(1.0, (300, 200)))
    labels = generator.random(300) < 0.3
    order = generator.permutation(200)
    one, other = (
        logistic(RiskData(given, labels, given[:0], labels[:0], given), 0)
        for given in (features, features[:, order])
    )
    assert np.abs(one - other).max() < 1e-9
