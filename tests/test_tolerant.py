"""Decisions scored with tolerance: what is the same name or concept, and what is not."""

from itertools import permutations
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrr1.config.records import Concepts, OpenConcepts, UmlsConcepts
from ehrr1.errors import UserError
from ehrr1.evaluation.tolerance import TOLERANT, with_tolerance
from ehrr1.scoring.sets import set_scores
from ehrr1.scoring.tolerant import Speller, matches, one_edit, tolerant_f1
from tests.settings import composed

RIGHT = (
    *("Hydralazine", "Hydroxyzine", "Potassium Chloride", "Penicillin G", "Insulin", "Vancomycin"),
    *("Type 2 diabetes mellitus", "Urethral stent", "Fracture of left arm", "Chest pain"),
    *("Lymphocytes", "Platelet Count", "Atorvastatin", "Hypertension", "Cefazolin", "Cefazolan"),
)
SAME = {
    "- POTASSIUM  chloride.": "Potassium Chloride",
    "Chloride, Potassium": "Potassium Chloride",
    "Pain, chest": "Chest pain",
    "Lymphocyte": "Lymphocytes",
    "Platelets count": "Platelet Count",
    "Atorvastatine": "Atorvastatin",  # a letter more, less, another, and two exchanged
    "Vancomycn": "Vancomycin",
    "Vancomicin": "Vancomycin",
    "Vancmoycin": "Vancomycin",
}
OTHER = {
    "Hydroxyzine": "Hydralazine",
    "Insulin pump": "Insulin",
    "Insuline": "Insulin",  # the word has fewer than eight letters
    "Penicillin V": "Penicillin G",
    "Type 1 diabetes mellitus": "Type 2 diabetes mellitus",
    "Fracture of arm left": "Fracture of left arm",
    "Fracture of right arm": "Fracture of left arm",
    "Hypotension": "Hypertension",
    "Cefazolen": "Cefazolin",  # as near to another right answer
    "Ureteral stent": "Urethral stent",  # "ureteral" is a word of the dictionary
}


@pytest.mark.parametrize(("pairs", "same"), [(SAME, True), (OTHER, False)])
def test_spellings_of_one_name_and_other_names(pairs: dict[str, str], same: bool) -> None:
    speller = Speller(map(str.lower, RIGHT))
    speller.learn(["ureteral"])
    found = {
        one: speller.key(one.lower()) == speller.key(two.lower()) for one, two in pairs.items()
    }
    assert found == dict.fromkeys(pairs, same)


@settings(max_examples=60, deadline=None)
@given(st.text("ab", max_size=4), st.text("ab", max_size=4))
def test_one_edit_is_what_brute_force_finds(one: str, other: str) -> None:
    def edited(word: str) -> set[str]:
        parts = [(word[:n], word[n:]) for n in range(len(word) + 1)]
        return (
            {a + b[1:] for a, b in parts if b}
            | {a + c + b for a, b in parts for c in "ab"}
            | {a + c + b[1:] for a, b in parts if b for c in "ab"}
            | {a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1}
        )

    assert one_edit(one, other) == (one != other and other in edited(one))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.frozensets(st.sampled_from("abc")), max_size=4), st.data())
def test_an_item_matches_once(said: list[frozenset[str]], data: Any) -> None:
    right = data.draw(st.lists(st.frozensets(st.sampled_from("abc")), max_size=4))
    few, many = sorted((said, right), key=len)
    best = max(sum(bool(a & b) for a, b in zip(few, p, strict=False)) for p in permutations(many))
    assert matches(said, right) == best


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_without_common_keys_it_is_the_exact_f1(said: set[str], right: set[str]) -> None:
    keys = {item: frozenset({item}) for item in "abcd"}
    assert tolerant_f1(said, right, keys) == pytest.approx(set_scores(said, right).f1)


DICTIONARY = """concept_id\tname\tsemantic_type\tsource\tsynonyms\txrefs
X:1\tAcetaminophen\tChemical or Drug\tX\tParacetamol|APAP\tATC:N02BE01
X:2\tMetoprolol\tChemical or Drug\tX\t\tMESH:1|ATC:C07AB02
X:3\tAtenolol\tChemical or Drug\tX\t\tATC:C07AB03
X:4\tInsulin\tChemical or Drug\tX\t\tATC:A10A
X:5\tHeart attack\tDisease\tX\tMyocardial infarction\t
"""


def open_concepts(folder: Path) -> OpenConcepts:
    path = folder / "concepts.tsv"
    path.write_text(DICTIONARY)
    return OpenConcepts(
        source="open", dictionary=str(path), relations=None, cache=str(folder), workers=None
    )


def umls_concepts(folder: Path) -> UmlsConcepts:
    """The same dictionary as rows of MRCONSO.RRF."""
    rows = []
    for line in DICTIONARY.splitlines()[1:]:
        concept, name, _, _, synonyms, xrefs = line.split("\t")
        codes = [x.removeprefix("ATC:") for x in xrefs.split("|") if x.startswith("ATC:")]
        atoms = [("P", "OWN", "1", name), *(("P", "ATC", code, name) for code in codes)]
        atoms += [("S", "OWN", "1", synonym) for synonym in synonyms.split("|") if synonym]
        for status, source, code, text in atoms:
            rows.append(f"{concept}|ENG|{status}|L|PF|S|Y|A||||{source}|PT|{code}|{text}|0|N|256|")
    rows.append("X:3|ENG|P|L|PF|S|Y|A||||OWN|PT|1|Metoprolol|0|O|256|")  # obsolete
    (folder / "MRCONSO.RRF").write_text("\n".join(rows) + "\n")
    return UmlsConcepts(
        source="umls", folder=str(folder), threshold=0.8, cache=str(folder), workers=None
    )


ANSWERS = {  # task, answer, right -> F1 without a dictionary, with one, at ATC level 4
    ("prescriptions", "Paracetamol", "Acetaminophen"): (0, 1, 1),
    ("prescriptions", "APAP", "Acetaminophen"): (0, 0, 0),  # short synonyms are ambiguous
    ("prescriptions", "Acetaminophen 500 mg Tablet", "Acetaminophen"): (0, 1, 1),
    ("prescriptions", "Metoprolol Tartrate", "Metoprolol Succinate XL"): (0, 1, 1),  # substance
    ("prescriptions", "Atenolol", "Metoprolol"): (0, 0, 1),
    ("prescriptions", "Insulin pump", "Insulin"): (0, 0, 0),
    ("labevents", "Atenolol", "Metoprolol"): (0, 0, 0),  # ATC is for drugs that are given
    ("labevents", "Acetaminophen 500 mg Tablet", "Acetaminophen"): (0, 0, 0),
    ("diagnoses_icd", "Myocardial infarction", "Heart attack"): (0, 1, 1),
    ("diagnoses_icd", "Myocardial infarction\nHeart attack", "Heart attack"): (2 / 3,) * 3,
    ("diagnoses_icd", "myocardial infarctions", "Heart attack\nStroke"): (0, 0, 0),
    ("prescriptions", "", "Insulin"): (0, 0, 0),
}


@pytest.mark.parametrize("kind", ["items", "open", "umls"])
def test_concepts_and_atc_classes(kind: str, tmp_path: Path) -> None:
    concepts: Concepts = {
        "items": lambda: composed().concepts,
        "open": lambda: open_concepts(tmp_path),
        "umls": lambda: umls_concepts(tmp_path),
    }[kind]()
    rows = [*ANSWERS, ("Inpatient_Mortality", "yes", "yes")]
    table = pl.DataFrame(rows, schema=["task", "prediction", "target"], orient="row")
    for level, column in ((5, 1), (4, 2)):
        found = with_tolerance(table, concepts, level)
        assert found.drop(TOLERANT).equals(table) and found[TOLERANT][-1] is None
        wanted = [scores[0 if kind == "items" else column] for scores in ANSWERS.values()]
        assert found[TOLERANT].to_list()[:-1] == pytest.approx(wanted)


def test_a_missing_dictionary_is_named(tmp_path: Path) -> None:
    concepts = open_concepts(tmp_path)
    (tmp_path / "concepts.tsv").unlink()
    table = pl.DataFrame({"task": ["emar"], "prediction": ["a"], "target": ["a"]})
    with pytest.raises(UserError, match=r"concepts.dictionary=.*there is no file"):
        with_tolerance(table, concepts, 5)
