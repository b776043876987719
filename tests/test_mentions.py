"""Concepts in free text: where, which, as what; and the cache that reads each text once."""

import importlib.util
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.graph.text.flowed_text import flow
from ehrr1.graph.text.mention_cache import BATCH, MentionCache, open_cache
from ehrr1.graph.text.mentions import EVIDENCE, Reader, TextSource, open_reader, open_source
from ehrr1.synthetic.hospital import write_hospital
from tests.conftest import ROOT
from tests.test_linking import HEADING, item_concepts, open_concepts, umls_concepts, write_umls

if importlib.util.find_spec("medspacy") is None:
    pytest.skip("no medspaCy: make setup", allow_module_level=True)

DICTIONARY = """
A:1	pneumonia	Disease or Syndrome	DOID	lung infection|PNA
A:2	pneumothorax	Disease or Syndrome	DOID
A:3	chest pain	Sign or Symptom	SYMP	Pain, Chest|pain in the chest
A:4	pain	Sign or Symptom	MeSH
A:5	hypertension	Disease or Syndrome	DOID	HTN|high blood pressure
A:6	diabetes mellitus	Disease or Syndrome	DOID	diabetes
A:7	heparin	Chemical or Drug	ChEBI
A:8	sodium	Chemical or Drug	ChEBI
A:9	penicillin	Chemical or Drug	ChEBI
A:10	acquired immunodeficiency syndrome	Disease or Syndrome	DOID	AIDS|SNF
A:11	Lead	Chemical or Drug	MeSH
A:12	lung	Anatomical Structure	MeSH
A:13	breathing	Biologic Function	MeSH
A:14	Heart Rate	Finding	MIMIC d_items
A:15	fever	Sign or Symptom	SYMP	Fevers
A:16	stroke	Disease or Syndrome	DOID
A:17	congestive heart failure	Disease or Syndrome	DOID	CHF
A:18	heart failure	Disease or Syndrome	DOID
A:19	breast cancer	Neoplastic Process	DOID
A:21	allergies	Disease or Syndrome	MeSH
A:50	primary hypertension	Disease or Syndrome	DOID	high blood pressure
"""

FEVER_THEN_PNEUMONIA = {"fever": "historical", "pneumonia": "affirmed"}
HEPARIN_ENDED = {"Heparin": "historical", "penicillin": "affirmed"}
SIGNED = {"fever": "affirmed", "chest pain": "negated"}

STATUSES = [
    ("Chest pain, fever", {"Chest pain": "affirmed", "fever": "affirmed"}),
    ("He denied fever but has chest pain.", {"fever": "negated", "chest pain": "affirmed"}),
    ("No evidence of pneumonia. Fever.", {"pneumonia": "negated", "Fever": "affirmed"}),
    ("She doesn't have fever.", {"fever": "negated"}),
    ("Pneumonia was ruled out.", {"Pneumonia": "negated"}),
    ("Chest pain: none", {"Chest pain": "negated"}),
    # a heading bounds what is negated, and is not negated by what follows
    ("FINDINGS: No pneumothorax.", {"pneumothorax": "negated"}),
    (
        "Past Medical History:\nfever\nIMPRESSION: no pneumonia",
        {"fever": "historical", "pneumonia": "negated"},
    ),
    # a line break ends a sentence, unless the line was wrapped
    ("no fever\nchest pain", {"fever": "negated", "chest pain": "affirmed"}),
    (
        "The chest radiograph of this morning shows no evidence of \npneumonia in either half.",
        {"pneumonia": "negated"},
    ),
    (
        "No fever since the last admission to this hospital, she says\n- chest pain",
        {"fever": "negated", "chest pain": "affirmed"},
    ),
    ("Opacity, which may represent pneumonia.", {"pneumonia": "uncertain"}),
    ("Possible pneumonia. Fever.", {"pneumonia": "uncertain", "Fever": "affirmed"}),
    ("Pneumothorax cannot be excluded.", {"Pneumothorax": "uncertain"}),
    (
        "This man with a history of diabetes presented with fever.",
        {"diabetes": "chronic", "fever": "affirmed"},
    ),
    ("No history of stroke.", {"stroke": "negated"}),
    ("Mother with breast cancer.", {"breast cancer": "family"}),
    ("Breast cancer in mother. Fever.", {"Breast cancer": "family", "Fever": "affirmed"}),
    ("Family History:\nFather: stroke\nno diabetes", {"stroke": "family", "diabetes": "negated"}),
    ("Past Medical History:\nHTN, stroke", {"HTN": "chronic", "stroke": "chronic"}),
    ("Allergies: penicillin", {"penicillin": "hypothetical"}),
    ("Discharge Instructions:\nReturn if you have fever", {"fever": "hypothetical"}),
    # sections without blank lines, behind a long line and before a heading that no rule lists
    (
        "Family History: the patient's father had a myocardial event; mother stroke\n"
        "Social History: fever",
        {"stroke": "family", "fever": "affirmed"},
    ),
    ("Past Medical History:\nfever\nPertinent Findings:\npneumonia", FEVER_THEN_PNEUMONIA),
    ("Past Medical History:\nfever\nSTUDIES OF NOTE: pneumonia", FEVER_THEN_PNEUMONIA),
    ("Family History:\nMother:\nstroke", {"stroke": "family"}),
    # past history: chronic, unless it is over, denied, or of another
    ("PMH of HTN, fever", {"HTN": "chronic", "fever": "historical"}),
    ("Past Medical History:\nHTN, resolved", {"HTN": "historical"}),
    ("Past Medical History:\nno diabetes", {"diabetes": "negated"}),
    ("Past Medical History:\npossible HTN", {"HTN": "uncertain"}),
    ("History of HTN on heparin", {"HTN": "chronic", "heparin": "affirmed"}),
    # no change is no absence, nor is an exclusion that failed
    ("No interval change in the pneumonia.", {"pneumonia": "affirmed"}),
    ("Not only pneumonia but also fever.", {"pneumonia": "affirmed", "fever": "affirmed"}),
    ("Cannot rule out pneumonia.", {"pneumonia": "uncertain"}),
    ("Pneumonia could not be ruled out.", {"Pneumonia": "uncertain"}),
    # a drug that is held, a problem that is over
    ("Heparin was held for fever.", {"Heparin": "historical", "fever": "affirmed"}),
    ("Held heparin given fever", {"heparin": "historical", "fever": "affirmed"}),
    ("Heparin discontinued, started penicillin", HEPARIN_ENDED),
    ("# Fever: resolved", {"Fever": "historical"}),
    (
        "Fever has resolved but chest pain goes on",
        {"Fever": "historical", "chest pain": "affirmed"},
    ),
    # signs
    ("(+) fever (-) chest pain, stroke", SIGNED | {"stroke": "negated"}),
    ("+fever, -chest pain. Stroke", SIGNED | {"Stroke": "affirmed"}),
    ("fever (+), chest pain (-), stroke", SIGNED | {"stroke": "affirmed"}),
    (
        "- fever\n-stroke\n- chest pain",
        {"fever": "affirmed", "stroke": "affirmed", "chest pain": "affirmed"},
    ),
    ("heparin - fever", {"heparin": "affirmed", "fever": "affirmed"}),
    ("Heparin 5000 unit PRN chest pain", {"Heparin": "affirmed", "chest pain": "hypothetical"}),
    ("HISTORY: woman with chest pain", {"chest pain": "affirmed"}),
    ("Family History:\nstroke\nPhysical Exam:\nfever", {"stroke": "family", "fever": "affirmed"}),
]

FOUND = {
    # the longest wins; of two concepts the preferred name, then the smallest id
    "chest pain": [("A:3", "chest pain")],
    "congestive  heart\tfailure": [("A:17", "congestive  heart\tfailure")],
    "Pain in the chest": [("A:3", "Pain in the chest")],
    "high blood pressure": [("A:5", "high blood pressure")],
    "FEVERS": [("A:15", "FEVERS")],
    # words, not parts of words; each side of a slash
    "painful hypertensions": [],
    "fever/chest pain": [("A:15", "fever"), ("A:3", "chest pain")],
    # abbreviations in capitals only, and only those that mean one thing
    "HTN and htn": [("A:5", "HTN")],
    "AIDS, hearing aids": [("A:10", "AIDS")],
    "SNF and PNA and CHF": [("A:1", "PNA"), ("A:17", "CHF")],
    "DM2, C/P, sob or SOB": [],  # meanings that this dictionary lacks
    "CP -> cp": [("A:3", "CP")],
    # a catalogue's spelling, everyday words, general types, MIMIC's own items
    "pain, chest clear": [("A:4", "pain")],
    "lead lung breathing heart rate": [],
    # a salt
    "heparin sodium": [("A:7", "heparin")],
    "low sodium": [("A:8", "sodium")],
    # a heading says where, not what
    "Chief Complaint:\nfever\nFever:\n": [("A:15", "fever"), ("A:15", "Fever")],
    "Allergies: Allergies to heparin": [("A:21", "Allergies"), ("A:7", "heparin")],
    "": [],
    "\n \n": [],
}


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "concepts.tsv"
    lines = [line + "\t" * (5 - line.count("\t")) for line in DICTIONARY.strip().split("\n")]
    path.write_text("\n".join([HEADING, *lines, ""]))
    return path


@pytest.fixture(scope="module")
def source(dictionary: Path, tmp_path_factory: pytest.TempPathFactory) -> TextSource:
    return open_source(open_concepts(dictionary, tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def reader(source: TextSource) -> Reader:
    return open_reader(source)


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("hospital") / "tables"
    write_hospital(folder, 60, 0, progress=False)
    tables = [
        pl.read_csv(folder / "note" / f"{name}.csv.gz") for name in ("discharge", "radiology")
    ]
    return list(dict.fromkeys(text for table in tables for text in table["text"]))


@pytest.mark.parametrize(("text", "expected"), STATUSES, ids=range(len(STATUSES)))
def test_status(reader: Reader, text: str, expected: dict[str, str]):
    mentions = reader.read(text)
    assert {text[m.start : m.end]: m.status for m in mentions} == expected


def test_which_concepts_are_found_and_where(reader: Reader):
    for text, expected in FOUND.items():
        found = [(m.concept_id, text[m.start : m.end]) for m in reader.read(text)]
        assert found == expected, text


def test_a_mention_carries_name_and_section(reader: Reader):
    text = "fever\nBrief Hospital Course:\nHTN"
    before, course = reader.read(text)
    assert before == ("A:15", "fever", 0, 5, "", "affirmed")
    assert course == ("A:5", "hypertension", 29, 32, "hospital_course", "affirmed")
    assert before.status in EVIDENCE


def test_spans_are_places_of_the_text_as_it_is(reader: Reader):
    """However a text is broken, spaced and indented, each mention is found at its own place."""
    generator = random.Random(0)
    spaces = [" ", "  ", "\t", " \n", "\r\n", "\n\n  ", "\xa0"]
    for _ in range(200):
        words = generator.choices(["fever", "stroke", "heparin", "seen", "x" * 60, "today."], k=12)
        text = "".join(generator.choice(spaces) + word for word in words)
        mentions = reader.read(text)
        assert [text[m.start : m.end] for m in mentions] == [w for w in words if w in NAMES]
        assert flow(text).text.split() == text.split()


NAMES = {"fever", "stroke", "heparin"}


def test_phrases_match_what_the_patterns_of_medspacy_match():
    """Each alternative of each ConText pattern, against spaCy's own matcher of that pattern."""
    from medspacy.context import ConTextRule
    from spacy.matcher import Matcher
    from spacy.tokens import Doc

    from ehrr1.graph.text.assertion import RESOURCES, phrases
    from ehrr1.graph.text.mentions import blank

    nlp = blank()
    checked = 0
    for rule in ConTextRule.from_json(str(RESOURCES / "context_rules.json")):
        if rule.pattern is None:
            words = tuple(token.text for token in nlp.make_doc(rule.literal.lower()))
            assert list(phrases(rule.literal, None)) == [words]
            continue
        matcher = Matcher(nlp.vocab)
        matcher.add("rule", [rule.pattern])
        for words in phrases(rule.literal, rule.pattern):
            if words not in {("risks", "of"), ("risk", "of")}:  # one token in their pattern: a slip
                doc = Doc(nlp.vocab, words=list(words))
                assert (0, len(doc)) in {(start, end) for _, start, end in matcher(doc)}
                checked += 1
    assert checked > 500


def test_umls_finds_similar_spellings_with_context(tmp_path: Path):
    terms = [("C1", "Atrial Fibrillation", "T047"), ("C2", "Pneumonia", "T047")]
    write_umls(tmp_path / "META", [*terms, ("C3", "Fibrillation", "T047"), ("C4", "Nurse", "T097")])
    concepts = umls_concepts(tmp_path / "META", tmp_path / "cache")
    text = "Seen by the nurse: atrial fibrilation.\nNo pneumonia"
    mentions = open_reader(open_source(concepts)).read(text)
    assert [(m.concept_id, m.name, text[m.start : m.end], m.status) for m in mentions] == [
        ("C1", "Atrial Fibrillation", "atrial fibrilation", "affirmed"),
        ("C2", "Pneumonia", "pneumonia", "negated"),
    ]
    texts = [f"{number} beds. {text}" for number in range(3 * BATCH)]
    cache = open_cache(concepts)
    assert cache.read(texts, workers=2) == len(texts)  # two processes share one index
    assert {m.concept_id for text in texts for m in cache.of(text)} == {"C1", "C2"}


def test_items_import_no_medspacy():
    code = (
        "import sys\n"
        "from ehrr1.config.records import ItemConcepts\n"
        "import ehrr1.graph.text.linking as links, ehrr1.graph.text.mention_cache as cache\n"
        "items = ItemConcepts(source='items', cache='cache', workers=None)\n"
        "assert cache.open_cache(items) is None and links.open_linker(items) is None\n"
        "assert not {'medspacy', 'spacy', 'quickumls', 'nltk'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_the_clinical_extra_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "quickumls", None)  # as if not installed
    with pytest.raises(UserError, match=r"not installed: quickumls; .*make setup"):
        open_source(open_concepts(tmp_path / "absent.tsv", tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_parallel_is_serial_in_any_order(source: TextSource, notes: list[str], tmp_path: Path):
    texts = notes[: 6 * BATCH]
    serial, parallel = (MentionCache(tmp_path / name, source) for name in ("one", "two"))
    assert serial.read(texts, workers=1) == len(texts)
    assert parallel.read(iter([*reversed(texts), *texts]), workers=2) == len(texts)
    assert {text: serial.of(text) for text in texts} == {text: parallel.of(text) for text in texts}
    assert any(serial.of(text) for text in texts)
    assert serial.read(texts, workers=2) == 0
    with pytest.raises(KeyError):
        serial.of("another text")


def test_a_pass_that_is_killed_goes_on_where_it_stopped(
    source: TextSource, notes: list[str], tmp_path: Path
):
    texts = tmp_path / "texts.parquet"
    many = [f"{text}\n{number}" for number in range(12) for text in notes[: 2 * BATCH]]
    pl.DataFrame({"text": many}).write_parquet(texts)
    code = (
        "import sys, polars, pathlib\n"
        "from ehrr1.graph.text.mention_cache import MentionCache\n"
        "from ehrr1.graph.text.mentions import TextSource\n"
        "if __name__ == '__main__':\n"
        f"    source = TextSource('open', pathlib.Path({str(source.path)!r}), 1.0)\n"
        f"    texts = polars.read_parquet({str(texts)!r})['text'].to_list()\n"
        f"    MentionCache(pathlib.Path({str(tmp_path)!r}), source).read(texts, workers=1)\n"
    )
    (tmp_path / "reads.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}"}
    process = subprocess.Popen([sys.executable, tmp_path / "reads.py"], env=environment)
    cache = MentionCache(tmp_path, source)
    while rows(cache.path) == 0:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = rows(cache.path)
    assert 0 < done < len(many)
    assert cache.read(many, workers=1) == len(many) - done
    assert rows(cache.path) == len(many)


def rows(file: Path) -> int:
    with sqlite3.connect(file) as table:
        return table.execute("SELECT count(*) FROM mentions").fetchone()[0]


def test_a_process_that_dies_is_an_error_and_nothing_is_lost(
    source: TextSource, notes: list[str], tmp_path: Path
):
    texts = notes[: 3 * BATCH]
    cache = MentionCache(tmp_path, source)

    def deadly() -> Iterator[str]:
        yield from (f"{number} {text}" for number in range(4) for text in texts)
        for process in active_children():
            process.kill()
        yield from texts

    with pytest.raises(UserError, match=r"concepts\.workers=2: a process that read free text died"):
        cache.read(deadly(), workers=2)
    done = rows(cache.path)
    again = [f"{number} {text}" for number in range(4) for text in texts] + texts
    assert cache.read(again, workers=1) == len(again) - done


def test_another_dictionary_has_another_cache(source: TextSource, dictionary: Path, tmp_path: Path):
    other = tmp_path / "other.tsv"
    other.write_text(dictionary.read_text().replace("HTN|", "HTN|raised pressure|"))
    concepts = open_concepts(other, tmp_path)
    assert open_source(concepts).fingerprint != source.fingerprint
    assert open_source(concepts).fingerprint == open_source(concepts).fingerprint
    assert open_source(item_concepts(tmp_path)) is None
