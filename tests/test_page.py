"""The pictures of one sample: what stands where; a real browser clicks through the page."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from ehrr1.graph.evidence import from_json
from ehrr1.reasoning.pictures.figure import BULGE, SIZE, WIDEST, box_of, draw, fitted
from ehrr1.reasoning.pictures.layout import arrange
from ehrr1.reasoning.pictures.page import PageContent, page
from ehrr1.reasoning.trace import Line, trace
from tests.conftest import CommandLine
from tests.test_graph import event, sample

Driver = Any


LIT = """
const lit = kind => [...document.querySelectorAll(`.${kind}`)].map((element, at) => [element, at])
  .filter(([element]) => element.classList.contains("on"));
return {
  nodes: lit("node").map(([element]) => element.dataset.node),
  events: lit("event").map(([element]) => element.dataset.node),
  edges: lit("edge").map(([element]) => Number(element.dataset.edge)),
  lines: lit("line").map(([element]) => Number(element.dataset.line)),
  rest: document.querySelectorAll(".tracing, [aria-pressed=true]").length,
};
"""


class Opened:
    """A page in the browser, and what is lit on it."""

    def __init__(self, browser: Driver, path: Path):
        self.browser = browser
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(path.as_uri())

    def all(self, selector: str) -> list[Driver]:
        found: list[Driver] = self.browser.find_elements("css selector", selector)
        return found

    def texts(self, selector: str) -> list[str]:
        return [found.text for found in self.all(selector)]

    def click(self, element: Driver) -> None:
        """A click on what may have to be scrolled into view first."""
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, key: str) -> None:
        self.browser.switch_to.active_element.send_keys(key)

    def lit(self) -> dict[str, Any]:
        """Nodes and events by id, edges and lines by position."""
        lit: dict[str, Any] = self.browser.execute_script(LIT)
        return lit

    def is_dark(self) -> bool:
        return not any(self.lit().values())

    def requests(self) -> list[str]:
        log = (json.loads(row["message"]) for row in self.browser.get_log("performance"))
        sent = (row["message"] for row in log)
        return [
            row["params"]["request"]["url"]
            for row in sent
            if row["method"] == "Network.requestWillBeSent"
        ]


def check_lines(opened: Opened, lines: list[Line], graph: nx.DiGraph) -> None:
    """Click every line: lit is what it rests on, and nothing else."""
    edges = list(graph.edges)
    for button in opened.all(".line"):
        at = int(button.get_attribute("data-line"))
        assert button.text.split() == lines[at].text.split()
        opened.click(button)
        lit = opened.lit()
        assert set(lit["nodes"]) == set(lines[at].nodes)
        assert set(lit["events"]) == {node for node in lit["nodes"] if node.startswith("event:")}
        assert {edges[place] for place in lit["edges"]} == set(lines[at].edges)
        assert lit["lines"] == [at]


# --- by the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(smoke: Path) -> tuple[dict[str, Any], nx.DiGraph]:
    """The kept chain of few answers with the most lines of reasoning, and its graph."""
    drafts = map(json.loads, (smoke / "chains" / "chains.jsonl").open(encoding="utf-8"))
    short = [row for row in drafts if row["kept"] and row["answer"].count("\n") < 8]
    best = max(short, key=lambda row: row["chain"].count("->"))
    rows = map(json.loads, (smoke / "graph" / "graphs.jsonl").open(encoding="utf-8"))
    return best, next(from_json(r["graph"]) for r in rows if r["sample_id"] == best["sample_id"])


@pytest.fixture(scope="module")
def shown(smoke: Path, kept: tuple[dict, nx.DiGraph], command_line: CommandLine) -> Path:
    """The page of that sample, as the command line makes it; the run is as it was before."""
    finished = (smoke / "graph" / "metrics.json").read_bytes()
    done = command_line(
        *("experiment=smoke", "stage=graph", f"output_root={smoke.parent}"),
        f"graph.show={kept[0]['sample_id']}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (smoke / "graph" / "metrics.json").read_bytes() == finished
    paths = {path.suffix: path for path in map(Path, done.stderr.splitlines()[-3:])}
    assert all(path.parent == smoke / "graph" / "show" for path in paths.values())
    assert paths[".png"].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[".svg"].read_text(encoding="utf-8")
    return paths[".html"]


def test_a_click_on_a_sentence_lights_what_it_rests_on(
    browser: Driver, shown: Path, kept: tuple[dict, nx.DiGraph]
) -> None:
    draft, graph = kept
    opened, lines = Opened(browser, shown), trace(draft["chain"], graph)
    assert opened.is_dark()
    assert "kept" in opened.texts("#verdict")[0]
    assert sorted(opened.texts("#answer li")) == draft["answer"].splitlines()
    assert len(opened.all(".line")) == len(
        [line for line in lines if not line.text.startswith("#")]
    )
    check_lines(opened, lines, graph)
    assert browser.get_log("browser") == []
    assert opened.requests() == [shown.as_uri()]


def test_escape_and_a_second_click_clear(browser: Driver, shown: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened = Opened(browser, shown)
    first = opened.all(".line")[0]
    for end in (lambda: opened.press(Keys.ESCAPE), first.click, lambda: opened.press(Keys.ENTER)):
        first.send_keys(Keys.ENTER)
        assert first.get_attribute("aria-pressed") == "true" and opened.lit()["nodes"]
        end()
        assert opened.is_dark()


def test_the_timeline_scrolls_to_the_evidence_and_unfolds(browser: Driver, shown: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    opened = Opened(browser, shown)
    pane = opened.all("#timeline .body")[0].rect
    for line in opened.all(".line")[:6]:
        opened.click(line)
        tops = [found.rect["y"] for found in opened.all(".event.on")]
        assert any(pane["y"] <= top < pane["y"] + pane["height"] for top in tops)
    folded = opened.all(".event.evidence")[0]
    opened.click(folded.find_element("css selector", "summary"))
    # a browser tells the page of it in a later task
    WebDriverWait(folded, 10).until(lambda one: one.find_elements("css selector", "tr.hit"))


def test_a_click_on_a_node_lights_its_lines_and_events(
    browser: Driver, shown: Path, kept: tuple[dict, nx.DiGraph]
) -> None:
    draft, graph = kept
    opened, lines = Opened(browser, shown), trace(draft["chain"], graph)
    for box in opened.all(".node.concept")[:6]:
        node = box.get_attribute("data-node")
        opened.click(box)
        near = {node, *graph.successors(node), *graph.predecessors(node)}
        lit = opened.lit()
        assert set(lit["nodes"]) == near
        assert set(lit["events"]) == {other for other in near if other.startswith("event:")}
        assert lit["lines"] == [at for at, line in enumerate(lines) if node in line.nodes]


def test_a_sample_without_a_graph_is_refused(smoke: Path, command_line: CommandLine) -> None:
    done = command_line(
        "experiment=smoke", "stage=graph", f"output_root={smoke.parent}", "graph.show=no/such"
    )
    valid = json.loads((smoke / "graph" / "graphs.jsonl").open(encoding="utf-8").readline())
    assert done.returncode == 2 and "graph.show=no/such" in done.stderr
    assert valid["sample_id"] in done.stderr


def test_the_graph_is_made_first_and_a_page_without_chain_says_how_to_make_one(
    browser: Driver, smoke: Path, kept: tuple[dict, Any], tmp_path: Path, command_line: CommandLine
) -> None:
    done = command_line(
        *(
            "experiment=smoke",
            "stage=graph",
            f"output_root={tmp_path}",
            "graph.samples_per_task=10",
        ),
        *(f"inputs.prepare={smoke / 'prepare'}", f"graph.show={_first(smoke)}"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    opened = Opened(browser, Path(done.stderr.splitlines()[-1]))
    (command,) = opened.texts("#chain code")
    assert command.startswith("python run.py ") and "stage=chains" in command
    assert f"output_root={tmp_path}" in command and "graph.show" not in command
    assert browser.get_log("browser") == []


def _first(smoke: Path) -> str:
    """A sample that is drawn however few are."""
    lines = (smoke / "graph" / "graphs.jsonl").open(encoding="utf-8")
    rows = (json.loads(line) for line in lines)
    return next(row["sample_id"] for row in rows if row["task"] == "services")


# --- made by hand -------------------------------------------------------------------------------

ODD = "</script><img src=x onerror=alert(1)> $a_1$ & <!--"


def by_hand() -> nx.DiGraph:
    """Two concepts, one of them with a path of two facts to the answer; one answer without any."""
    graph = nx.DiGraph()
    graph.add_node("event:0", kind="event", label="Labotary Test Events [2150-03-04 03:00:00]")
    glucose, odd = "concept:labevents:Glucose", f"concept:labevents:{ODD}"
    for node in (glucose, odd):
        label = node.removeprefix("concept:labevents:")
        graph.add_node(node, kind="concept", label=label, table="labevents")
        graph.add_edge(node, "event:0", kind="occurrence", time="2150-03-04T03:00:00")
    for item in ("Insulin", ODD):
        graph.add_node(f"answer:{item}", kind="answer", label=item)
    names = {"C1": "Hyperglycaemia", "C2": "Insulin, regular"}
    for known, name in names.items():
        node = f"concept:knowledge:{known}"
        graph.add_node(node, kind="concept", label=name, table="knowledge", concept_id=known)
    one, two = "concept:knowledge:C1", "concept:knowledge:C2"
    graph.add_edge(glucose, "answer:Insulin", kind="cooccurrence", support=3, lift=2.5)
    graph.edges[glucose, "answer:Insulin"].update(hops=1, via="C1\tC2")
    graph.add_edge(glucose, one, kind="knowledge", relation="linked", vocabulary="open")
    graph.add_edge(
        one, two, kind="knowledge", relation="may_treat", vocabulary="MED-RT", inverse=True
    )
    graph.add_edge(two, "answer:Insulin", kind="knowledge", relation="linked", vocabulary="open")
    return graph


PROSE = f"The glucose at 03:00 is high, so insulin is due.\nNothing here.\n{ODD} | -> | {ODD}"
REJECTED = {"chain": PROSE, "draft": 1, "kept": False, "rejected_by": ["sections", "hedging"]}
BY_HAND = PageContent(
    sample=sample(7, "emar", "Insulin", ODD),
    context=[event("labevents", 3, ["Glucose", ODD])],
    graph=by_hand(),
    draft=REJECTED,
    note="",
    is_open=False,
)


def test_prose_knowledge_and_odd_names(browser: Driver, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(BY_HAND), encoding="utf-8")
    opened, lines = Opened(browser, path), trace(PROSE, BY_HAND.graph)
    assert "concept:knowledge:C1" in lines[0].nodes and "event:0" in lines[0].nodes
    check_lines(opened, lines, BY_HAND.graph)
    assert "rejected (sections, hedging); 2 of 3 lines" in opened.texts("#verdict")[0]
    assert opened.texts("#closed") == [opened.all("#closed")[0].text] and opened.texts("#closed")[0]
    assert opened.texts(".titles span") == [
        "Events",
        "Concepts",
        "Knowledge",
        "Knowledge",
        "Answers",
    ]
    assert not opened.all("img") and len(opened.all(".node.alone")) == 1
    assert browser.get_log("browser") == [] and opened.requests() == [path.as_uri()]
    fact = opened.all(".edge.knowledge:not(.linked) .reach")[0]
    browser.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('mousemove', {bubbles: true}))", fact
    )
    assert opened.texts("#tip") == ["Insulin, regular\nmay_treat\nHyperglycaemia\nsource: MED-RT"]


def comes_with() -> nx.DiGraph:
    """Return `by_hand` with an edge between its two answers."""
    graph = by_hand()
    graph.add_edge("answer:Insulin", f"answer:{ODD}", kind="together", probability=0.6)
    return graph


def test_curves_between_answers_are_drawn_whole(browser: Driver, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(replace(BY_HAND, graph=comes_with())), encoding="utf-8")
    Opened(browser, path)
    rights = browser.execute_script(
        "return [...document.querySelectorAll('.edge .seen')]"
        ".map(one => one.getBBox()).map(box => box.x + box.width)"
    )
    width = browser.execute_script("return document.querySelector('#picture svg').clientWidth")
    assert max(rights) < width

    widths = []
    for number, graph in enumerate((by_hand(), comes_with())):
        figure = tmp_path / f"{number}.svg"
        draw(graph, "", figure, "svg")
        said = re.search(r'<svg[^>]* width="([0-9.]+)pt"', figure.read_text(encoding="utf-8"))
        assert said
        widths.append(float(said[1]))
    assert widths[1] - widths[0] == pytest.approx(72 * BULGE)


def much_evidence() -> nx.DiGraph:
    """Return `by_hand` with six more concepts behind one answer, the first of them the weakest."""
    graph = by_hand()
    for number in range(1, 7):
        node = f"concept:labevents:Item {number}"
        graph.add_node(node, kind="concept", label=f"Item {number}", table="labevents")
        graph.add_edge(node, "event:0", kind="occurrence", time="2150-03-04T03:00:00")
        graph.add_edge(node, "answer:Insulin", kind="cooccurrence", support=9, lift=2.5 + number)
    return graph


def test_the_strongest_evidence_comes_first_and_the_rest_is_folded(
    browser: Driver, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(replace(BY_HAND, graph=much_evidence())), encoding="utf-8")
    opened = Opened(browser, path)
    seen = browser.execute_script("return document.documentElement.clientHeight")
    assert opened.all("#chain")[0].rect["y"] + opened.all("#chain")[0].rect["height"] > seen - 20
    concepts = {text.split("\n")[0] for text in opened.texts(".node.concept")}
    assert {"Item 4", "Item 5", "Item 6"} <= concepts and "Glucose" in concepts  # the chain's
    assert not concepts & {"Item 1", "Item 2", "Item 3"}
    assert opened.texts("#more") == ["Show all 18 lines"]
    check_lines(opened, trace(PROSE, BY_HAND.graph), much_evidence())
    opened.click(opened.all("#more")[0])
    assert len(opened.all(".node.concept")) == 8 and len(opened.all(".edge")) == 18
    check_lines(opened, trace(PROSE, BY_HAND.graph), much_evidence())
    opened.click(opened.all("#more")[0])
    assert {text.split("\n")[0] for text in opened.texts(".node.concept")} == concepts
    assert browser.get_log("browser") == []


def test_open_data_and_an_empty_record_need_no_warning(browser: Driver, tmp_path: Path) -> None:
    bare = nx.DiGraph()
    bare.add_node("answer:Insulin", kind="answer", label="Insulin")
    path = tmp_path / "page.html"
    empty = replace(BY_HAND, graph=bare, draft=None, note="None.", context=[], is_open=True)
    path.write_text(page(empty), encoding="utf-8")
    opened = Opened(browser, path)
    assert opened.texts("#closed") == [""] and opened.texts("#chain p:not(.soft)") == ["None."]
    opened.click(opened.all(".node")[0])
    assert opened.lit()["nodes"] == ["answer:Insulin"] and browser.get_log("browser") == []


def test_a_page_holds_no_address() -> None:
    text = page(BY_HAND)
    assert "http:" not in text and "https:" not in text and "url(#arrow)" in text
    assert text.count("</script>") == 2 and "onerror" in text and "<img" not in text


# --- the figure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figures_of_odd_and_of_empty_graphs(tmp_path: Path, form: str) -> None:
    bare = nx.DiGraph()
    bare.add_node("answer:Insulin", kind="answer", label="Insulin")
    for number, graph in enumerate((by_hand(), bare)):
        path = tmp_path / f"{number}.picture"
        draw(graph, f"$a$ {ODD}", path, form)
        assert path.stat().st_size > 1000


def test_boxes_are_as_wide_as_their_column_allows() -> None:
    graph = by_hand()
    graph.add_node("answer:long", kind="answer", label="W" * 200)
    long = box_of(graph, "answer:long")
    assert long.label.endswith("…") and WIDEST["answer"] - 0.2 < long.width <= WIDEST["answer"]
    assert box_of(graph, "event:0").label == "2150-03-04 03:00  Labotary Test Events"
    assert fitted("Sodium", 2.0, SIZE) == "Sodium" and fitted("Sodium", 0.2, SIZE) == "S…"


@pytest.mark.parametrize("seed", range(20))
def test_nodes_of_a_column_never_overlap(seed: int) -> None:
    """Random graphs: each node has one place, a row from the next; events stay in order of time."""
    graph = random_graph(random.Random(seed))
    layout = arrange(graph)
    assert sorted(node for column in layout.columns for node in column.nodes) == sorted(graph)
    for column in layout.columns:
        heights = [layout.heights[node] for node in column.nodes]
        assert all(b - a > 1 - 1e-9 for a, b in nx.utils.pairwise(heights))
        assert heights[0] > -1e-9 and heights[-1] < layout.rows - 1 + 1e-9
    events = layout.columns[0].nodes
    assert list(events) == sorted(events, key=lambda node: int(node.removeprefix("event:")))
    assert layout == arrange(graph)


def random_graph(draw: random.Random) -> nx.DiGraph:
    graph = nx.DiGraph()
    events = [f"event:{number}" for number in draw.sample(range(200), draw.randint(1, 30))]
    concepts = [f"concept:labevents:{number}" for number in range(draw.randint(1, 40))]
    known = [f"concept:knowledge:{number}" for number in range(8)]
    answers = [f"answer:{number}" for number in range(draw.randint(1, 25))]
    for node in events + answers:
        graph.add_node(node, kind=node.split(":")[0], label=node)
    for node in concepts:
        graph.add_node(node, kind="concept", label=node, table="labevents")
        graph.add_edge(node, draw.choice(events), kind="occurrence", time=None)
        graph.add_edge(node, draw.choice(answers), kind="cooccurrence", support=2, lift=3.0)
        path = draw.sample(known, draw.randint(0, 4))
        for inner in path:
            graph.add_node(inner, kind="concept", label=inner, table="knowledge")
        for start, end in nx.utils.pairwise([node, *path, draw.choice(answers)] if path else []):
            graph.add_edge(start, end, kind="knowledge", relation="isa", vocabulary="open")
    return graph
