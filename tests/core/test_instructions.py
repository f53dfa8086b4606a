"""What the core may ask for."""

from mta.core import instructions
from mta.core.instructions import BounceKind, Removal
from tests.support.core import Core, ev


def test_every_instruction_is_named_by_the_union():
    """What the core can say is what drivers have been told: each has a method for each of these."""
    found = {
        thing
        for thing in vars(instructions).values()
        if isinstance(thing, type) and issubclass(thing, tuple)
    }
    assert found == set(instructions.Instruction.__args__)


def test_the_ways_out_of_the_queue_have_distinct_words():
    """They are written to logs and traces."""
    assert ["delivered", "bounced", "expired", "removed"] == [way.value for way in Removal]
    assert ["failed", "expired", "delayed", "delivered", "relayed"] == [
        kind.value for kind in BounceKind
    ]


def test_instructions_are_values():
    """The same stimuli give the same instructions, twice over: traces can be compared."""
    first, second = Core(), Core()
    assert first.submit("one.test") == second.submit("one.test")
    assert first.resolve("one.test", (10, "192.0.2.1")) == second.resolve(
        "one.test", (10, "192.0.2.1")
    )
    (started,) = first.ready(1)
    assert {started} == set(second.ready(1))
    assert (ev(1),) == started.evpids
