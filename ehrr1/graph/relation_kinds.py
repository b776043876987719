"""Give relation types a meaning, and state which sequences of them form a sentence.

A path explains an answer if it can be read as one sentence, from one of its ends to the other:

    essential hypertension  is a kind of  hypertension  is treated with  lisinopril

The grammar of a sentence is

    sentence  = [classes] fact [classes] | classes
    classes   = one or more steps to a broader concept ("is a kind of", "contains")
    fact      = one step of a relation such as treats or symptom, in the active or the passive

Steps between equal concepts of two sources ("is the same as") may stand anywhere. Each step leads
to a broader concept, never back down, so that two concepts that only share a class, a role, a drug
or a disease are not connected. A passive fact follows a class only if it holds for all members of
the class: what treats hypertension treats essential hypertension, but a disease with the symptom
pain does not have the symptom chest pain.
"""

from typing import Literal, NamedTuple

Step = Literal["same", "class", "fact"]


class RelationKind(NamedTuple):
    """A meaning of relation types.

    active: the verb of the fact "head verb tail"; passive: the verb of the same fact, read from
    tail to head; step: its part in a sentence; passes_to_members: the fact holds for the narrower
    concepts of its tail (it always holds for those of its head).
    """

    active: str
    passive: str
    step: Step
    passes_to_members: bool = False


KINDS = {
    "same": RelationKind("is the same as", "is the same as", "same"),
    "is a": RelationKind("is a kind of", "includes", "class"),
    "ingredient": RelationKind("contains", "is contained in", "class"),
    "treats": RelationKind("is used to treat", "is treated with", "fact", True),
    "relieves": RelationKind("is used to relieve", "is relieved with", "fact", True),
    "prevents": RelationKind("is used to prevent", "is prevented with", "fact", True),
    "diagnoses": RelationKind("is used to diagnose", "is diagnosed with", "fact", True),
    "symptom": RelationKind("has the symptom", "is a symptom of", "fact"),
    "causes": RelationKind("causes", "is caused by", "fact"),
    "complication": RelationKind("has the complication", "is a complication of", "fact"),
    "measures": RelationKind("measures", "is measured by", "fact"),
    "role": RelationKind("has the role", "is the role of", "fact"),
}

_RELATIONS_OF = {
    # kind: (relation types whose fact reads "head verb tail", those that read "tail verb head").
    # Names of the open data, then RELA and REL of UMLS ("CUI2 RELA CUI1": MRREL's REL=PAR states
    # that the second concept is a parent of the first).
    "same": (
        "same_as SY has_tradename tradename_of mapped_to mapped_from has_alias alias_of",
        "",
    ),
    "is a": ("is_a isa CHD RN", "inverse_isa PAR RB"),
    "ingredient": (
        "has_ingredient has_active_ingredient has_precise_ingredient "
        "has_precise_active_ingredient has_basis_of_strength_substance",
        "ingredient_of active_ingredient_of precise_ingredient_of "
        "precise_active_ingredient_of basis_of_strength_substance_of",
    ),
    "treats": ("may_treat treats", "may_be_treated_by treated_by"),
    "relieves": ("palliates", "palliated_by"),
    "prevents": ("may_prevent prevents", "may_be_prevented_by prevented_by"),
    "diagnoses": ("may_diagnose diagnoses", "may_be_diagnosed_by diagnosed_by"),
    "symptom": (
        "has_symptom has_manifestation disease_has_finding disease_may_have_finding "
        "has_definitional_manifestation",
        "symptom_of manifestation_of is_finding_of_disease may_be_finding_of_disease "
        "definitional_manifestation_of",
    ),
    "causes": (
        "causes cause_of causative_agent_of induces",
        "caused_by due_to has_causative_agent induced_by",
    ),
    "complication": ("has_complication", "complication_of complicates"),
    "measures": ("measures analyzes", "measured_by analyzed_by"),
    "role": (
        "has_role has_mechanism_of_action has_physiologic_effect has_therapeutic_class",
        "role_of mechanism_of_action_of physiologic_effect_of therapeutic_class_of",
    ),
}

RELATIONS: dict[str, tuple[str, bool]] = {
    relation: (kind, bool(backwards))
    for kind, both in _RELATIONS_OF.items()
    for backwards, names in enumerate(both)
    for relation in names.split()
}
"""Relation type -> its kind, and whether its fact reads from tail to head.

Relation types without an entry have no known meaning and are on no path that must be a sentence.
"""


def is_same(relation: str) -> bool:
    """Return whether a relation type states that two concepts are equal."""
    return relation in RELATIONS and KINDS[RELATIONS[relation][0]].step == "same"


def is_passive(relation: str, inverse: bool) -> bool:
    """Return whether a fact with a known meaning is read from its object to its subject."""
    return RELATIONS[relation][1] != inverse


def verb(relation: str, inverse: bool) -> str:
    """Return the verb of a relation type, read along the fact or, if `inverse`, against it.

    A relation type without a known meaning is returned in words ("part_of": "part of"), with
    "(reversed)" if it is read against the fact.
    """
    if relation not in RELATIONS:
        return relation.replace("_", " ") + " (reversed)" * inverse
    kind = KINDS[RELATIONS[relation][0]]
    return kind.passive if is_passive(relation, inverse) else kind.active
