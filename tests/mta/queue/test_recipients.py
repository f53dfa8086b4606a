"""A recipient in the queue's columns: nothing is lost, and queues of before are read as they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import Recipient, local_key
from mta.queue.recipients import columns_of, recipient_of

text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


@given(
    user=text,
    method=st.text(min_size=1, max_size=20).filter(str.isprintable),
    more=st.tuples(*[text] * 6),
)
def test_a_local_recipient_comes_back(user, method, more):
    """Whatever its parts are."""
    address, notify, orcpt, tag, dest, rule = more
    before = Recipient(address, local_key(user), notify, orcpt, method, user, tag, dest, rule)
    assert recipient_of(*columns_of(before)) == before


def test_a_relayed_recipient_is_stored_as_ever():
    """Its rule is not: it has done its work."""
    recipient = Recipient("x@b.test", "b.test", "NEVER", "rfc822;x@b.test", rule="out")
    assert columns_of(recipient) == ("x@b.test", "b.test", "NEVER", "rfc822;x@b.test")
    assert recipient_of(*columns_of(recipient)) == recipient._replace(rule="")


@pytest.mark.parametrize(
    "domain", ["@", "@[]", '@["a"]', '@["a","","","",""]', "@{}", "@[1,2,3,4,5]"]
)
def test_what_is_damaged_is_told(domain):
    """The reader leaves such an envelope alone, and says so."""
    with pytest.raises(ValueError, match=r"\w"):
        recipient_of("x@b.test", domain, "", "")
