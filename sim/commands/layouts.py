"""`sim layouts`: whose bytes memory can be reckoned in."""

import json

from sim.commands.options import AsJson


def list_layouts(as_json: AsJson = False) -> None:
    """List the layouts that memory can be reckoned in, with their sources."""
    from dataclasses import asdict

    from sim import layout as layouts

    every = [layouts.load(name) for name in layouts.available()]
    if as_json:
        print(json.dumps([asdict(each) for each in every], allow_nan=False))
        return
    for each in every:
        print(f"{each.name:<20} {each.title}")
        for kind, numbers in (("relayed", each.relayed), ("local", each.local)):
            states = (f"{state} {value:,.0f}" for state, value in asdict(numbers).items())
            print(f"    {kind:<8} {', '.join(states)} bytes an envelope")
        for source in each.sources:
            print(f"    {source.what}\n        {source.where}")
        for note in each.notes.values():
            print(f"    {note}")
