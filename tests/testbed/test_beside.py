"""The report has how connections ended of clients that send no mail, for real and in the model."""

from sim.beside import Said
from sim.runner import simulate
from sim.scenario import load
from testbed.beside import measured, predicted

VERBS = {
    "verbs": {
        "RCPT": {"count": 5, "p50": 0.1},
        "slow-body 421 4.4.2": {"count": 3, "p50": 5.1},
        "slow-bodyguard": {"count": 1, "p50": 1.0},
        "idle": {"count": 2, "p50": 1.0},
    }
}


def test_rows_of_the_load_are_those_of_its_kinds() -> None:
    """Verbs of mail are none, nor are kinds that the scenario has not."""
    found = measured(load("slowloris", []), VERBS)
    assert found == {"slow-body 421 4.4.2": {"times": 3, "p50_s": 5.1}}
    assert measured(load("baseline", []), VERBS) == {}
    assert measured(load("slowloris", []), {}) == {}


def test_the_model_has_them_too() -> None:
    result = simulate(load("slowloris", ["load.messages=600"]))
    found = predicted(result)
    assert found.keys() == {"slow-body 421 4.4.2", "slow-commands 421 4.4.2"}
    said = result.beside["slow-body 421 4.4.2"]
    assert said == Said(20, said.mean_s)
    assert found["slow-body 421 4.4.2"] == {"times": 20, "mean_s": said.mean_s}
