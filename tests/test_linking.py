"""Item names to concepts: a dictionary of exact names, and UMLS by QuickUMLS."""

import gzip
import sys
from pathlib import Path

import pytest

from ehrr1.config.records import ItemConcepts, OpenConcepts, UmlsConcepts
from ehrr1.errors import UserError
from ehrr1.graph.text.linking import open_linker
from tests.conftest import shared_folder

HEADING = "concept_id\tname\tsemantic_type\tsource\tsynonyms\txrefs"
DICTIONARY = """
CHEBI:1	heparin	Chemical or Drug	ChEBI
CHEBI:2	insulin	Chemical or Drug	ChEBI
CHEBI:3	creatinine	Chemical or Drug	ChEBI
CHEBI:4	vancomycin	Chemical or Drug	ChEBI
CHEBI:5	ampicillin	Chemical or Drug	ChEBI
CHEBI:6	sodium chloride	Chemical or Drug	ChEBI
CHEBI:7	sodium	Chemical or Drug	ChEBI
DOID:1	pneumonia	Disease or Syndrome	DOID	lung infection
DOID:2	holoprosencephaly 1	Disease or Syndrome	DOID	HPE1
DOID:3	oral ulcer	Disease or Syndrome	DOID
MESH:1	Potassium	Chemical or Drug	MeSH
MESH:2	Ulcer	Sign or Symptom	MeSH	pneumonia
MESH:3	Records	Publication	MeSH
MESH:4	Lung	Anatomical Structure	MeSH	Lungs
MESH:5	pneumonia	Disease or Syndrome	MeSH
MESH:6	Glucose	Chemical or Drug	MeSH	D-Glucose|Dextrose
MIMIC:1	Potassium	Laboratory Procedure	MIMIC d_labitems
MIMIC:2	Anion Gap	Laboratory Procedure	MIMIC d_labitems
X:1		Disease or Syndrome	nameless
"""

LINKED = {
    # as written: case, punctuation and spaces do not count; a terminology before MIMIC's items
    "Potassium": "MESH:1",
    "  POTASSIUM ": "MESH:1",
    "d glucose": "MESH:6",
    "Anion Gap": "MIMIC:2",
    # a preferred name before another concept's synonym, then the smallest id
    "Pneumonia": "DOID:1",
    "lung infection": "DOID:1",
    "Dextrose": "MESH:6",
    "Lung": "MESH:4",
    # simplified
    "Creatinine (serum)": "CHEBI:3",
    "Potassium [Moles/volume]": "MESH:1",
    "Insulin - Regular": "CHEBI:2",
    "Insulin Regular": None,
    "Heparin Sodium 5,000 unit/mL": "CHEBI:1",
    "Heparin Sodium": "CHEBI:1",
    "Vancomycin 1 GM/200 mL Premix": "CHEBI:4",
    "Vancomycin Oral Liquid": "CHEBI:4",
    "Ampicillin Sodium": "CHEBI:5",
    "0.9% Sodium Chloride": "CHEBI:6",
    "Dextrose 50%": "MESH:6",
    "Potassium, Whole Blood": "MESH:1",
    "PNEUMONIA,ORGANISM UNSPECIFIED": "DOID:1",
    "Unspecified pneumonia": "DOID:1",
    # what must not be linked
    "HPE1": None,  # a laboratory code, not an abbreviation
    "K": None,
    "Records": None,
    "Lungs (auscultated)": None,  # only a whole name may mean a part of the body
    "Urine, Sodium": None,
    "Urine Sodium": None,
    "Sodium Phosphate": None,
    "Anion Gap, Calculated": None,  # of MIMIC's own items only the name itself
    "oral ulcer": "DOID:3",
    "Unspecified oral ulcer": "DOID:3",
    "Injection": None,
    "": None,
}


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    path = tmp_path / "concepts.tsv.gz"
    lines = [line + "\t" * (5 - line.count("\t")) for line in DICTIONARY.strip().split("\n")]
    path.write_bytes(gzip.compress("\n".join([HEADING, *lines, ""]).encode()))
    return path


def item_concepts(cache: Path) -> ItemConcepts:
    return ItemConcepts(source="items", cache=f"{cache}", workers=None)


def open_concepts(dictionary: Path, cache: Path) -> OpenConcepts:
    return OpenConcepts(
        source="open", dictionary=f"{dictionary}", relations=None, cache=f"{cache}", workers=None
    )


def write_umls(folder: Path, terms: list[tuple[str, str, str]], damage: str = "") -> None:
    """MRCONSO.RRF and MRSTY.RRF with terms of (concept, text, semantic type)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, types = [], []
    for number, (concept, text, kind) in enumerate(terms):
        atom = f"L{number}|PF|S{number}|Y|A{number}||||OWN|PT|{number}|{text}|0|N|256|"
        rows.append(f"{concept}|ENG|P|{atom}")
        types.append(f"{concept}|{kind}|B2|A kind|AT{number}|256|")
    rows += [damage] if damage else []
    (folder / "MRCONSO.RRF").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "MRSTY.RRF").write_text("\n".join(types) + "\n", encoding="utf-8")


UMLS = [
    ("C0032821", "Potassium", "T196"),
    ("C0019134", "heparin", "T121"),
    ("C0032285", "Pneumonia", "T047"),
    ("C0011849", "Diabetes Mellitus", "T047"),
    ("C0043210", "Woman", "T098"),
    ("C9999999", "Pneumonia", "T047"),
]


def umls_concepts(folder: Path, cache: Path) -> UmlsConcepts:
    return UmlsConcepts(
        source="umls", folder=f"{folder}", threshold=0.8, cache=f"{cache}", workers=None
    )


def test_names_are_linked_exactly_or_simplified(dictionary: Path, tmp_path: Path):
    linker = open_linker(open_concepts(dictionary, tmp_path))
    names = list(LINKED)
    expected = {name: concept for name, concept in LINKED.items() if concept}
    assert linker.link(names) == expected
    assert linker.link([*reversed(names), *names]) == expected
    assert linker.link([]) == {}


def test_items_need_no_linker(tmp_path: Path):
    assert open_linker(item_concepts(tmp_path)) is None


def test_umls_links_by_similarity_and_without_network(tmp_path: Path):
    write_umls(tmp_path / "META", UMLS)
    concepts = umls_concepts(tmp_path / "META", tmp_path / "cache")
    names = ["Potassium", "Pottassium", "Heparin Sodium 5,000 unit/mL", "Pneumonia", "Woman", "Ox"]
    assert open_linker(concepts).link(names) == {
        "Potassium": "C0032821",
        "Heparin Sodium 5,000 unit/mL": "C0019134",
        "Pneumonia": "C0032285",  # not the larger id of the same name
    }
    folder = next((tmp_path / "cache").glob("quickumls-????????????????"))
    built = folder.stat().st_mtime_ns
    concepts.threshold = 0.6
    assert open_linker(concepts).link(["Pottassium"]) == {"Pottassium": "C0032821"}
    assert folder.stat().st_mtime_ns == built


def test_an_index_that_was_not_finished_is_not_there(tmp_path: Path):
    write_umls(tmp_path / "META", UMLS, damage="C1|ENG|P")
    concepts = umls_concepts(tmp_path / "META", tmp_path / "cache")
    with pytest.raises(UserError, match=r"MRCONSO.RRF, line 7: 3 columns"):
        open_linker(concepts)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    write_umls(tmp_path / "META", UMLS)
    assert open_linker(concepts).link(["heparin"]) == {"heparin": "C0019134"}


def test_obsolete_and_foreign_terms_are_left_out(tmp_path: Path):
    write_umls(tmp_path / "META", UMLS[:2])
    conso = tmp_path / "META" / "MRCONSO.RRF"
    old = "C0032821|ENG|S|L9|PF|S9|Y|A9||||OWN|PT|9|kalium|0|O|256|\n"
    foreign = "C0032821|GER|S|L8|PF|S8|Y|A8||||OWN|PT|8|Kaliumsalz|0|N|256|\n"
    conso.write_text(conso.read_text() + old + foreign)
    linker = open_linker(umls_concepts(tmp_path / "META", tmp_path / "cache"))
    assert linker.link(["kalium", "Kaliumsalz", "Potassium"]) == {"Potassium": "C0032821"}


def test_what_is_missing_is_named(dictionary: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"concepts\.dictionary=.*absent\.tsv: no such file"):
        open_linker(open_concepts(tmp_path / "absent.tsv", tmp_path))
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("concept_id\tname\tsource\nA\tb\tc\n")
    with pytest.raises(
        UserError, match=r"concepts\.dictionary=.*no column semantic_type, synonyms"
    ):
        open_linker(open_concepts(wrong, tmp_path))
    ragged = tmp_path / "ragged.tsv"
    ragged.write_text(f"{HEADING}\nA\tb\tc\td\te\tf\tg\th\n")
    with pytest.raises(UserError, match=r"concepts\.dictionary=.*not a table"):
        open_linker(open_concepts(ragged, tmp_path))
    (tmp_path / "META").mkdir()
    with pytest.raises(UserError, match=r"concepts\.folder=.*META: no MRCONSO\.RRF"):
        open_linker(umls_concepts(tmp_path / "META", tmp_path))


def test_without_the_clinical_extra_the_remedy_is_named(
    dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "medspacy", None)  # as if not installed
    with pytest.raises(UserError, match=r"concepts=open: not installed: medspacy.*\[clinical\]"):
        open_linker(open_concepts(dictionary, tmp_path))


def test_the_open_dictionary_on_names_of_the_demo(tmp_path: Path):
    shared = shared_folder()
    if shared is None:
        pytest.skip("no open data: set EHRR1_SHARED to a folder with data/concepts")
    linker = open_linker(open_concepts(shared / "data" / "concepts" / "concepts.tsv.gz", tmp_path))
    linked = linker.link(["Potassium", "Heparin Sodium", "Albumin 5% (12.5g / 250mL)", "HPE1"])
    assert linked.pop("HPE1").startswith("MIMIC:")  # the laboratory's code, not the syndrome
    assert linked == {
        "Potassium": "MESH:D011188",
        "Heparin Sodium": "CHEBI:28304",
        "Albumin 5% (12.5g / 250mL)": "MESH:D000418",
    }
