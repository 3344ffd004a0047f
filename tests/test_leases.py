from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.leases import Leases, Limits

LIMITS = Limits(total=1000, program=400, tenant=600, seconds=60)


def test_a_program_may_hold_its_quota_and_no_more():
    assert Leases(LIMITS).room("a", "") == 400


def test_what_a_program_holds_already_is_not_counted_against_it():
    leases = Leases(LIMITS)
    leases.grant("a", "", 400, 10)
    assert leases.room("a", "") == 400


def test_all_together_hold_no_more_than_the_total():
    leases = Leases(LIMITS)
    for name in "abc":
        leases.grant(name, "", leases.room(name, ""), 10)
    assert (leases.tokens, leases.room("d", "")) == (1000, 0)
    assert leases.held["c"].tokens == 200


def test_a_tenant_holds_no_more_than_its_quota_whatever_its_programs():
    leases = Leases(LIMITS)
    leases.grant("a", "t", 400, 10)
    assert (leases.room("b", "t"), leases.room("b", "u")) == (200, 400)


def test_a_released_lease_makes_room_again():
    leases = Leases(LIMITS)
    leases.grant("a", "t", 400, 10)
    leases.release("a")
    leases.release("a")
    assert (leases.tokens, leases.tenants, leases.room("b", "t")) == (0, {}, 400)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "t", "u"]), st.integers(0, 2000)), max_size=40))
def test_no_sequence_of_grants_and_releases_exceeds_a_bound(calls):
    leases = Leases(LIMITS)
    for key, tenant, wanted in calls:
        tokens = min(wanted, leases.room(key, tenant))
        if tokens:
            leases.grant(key, tenant, tokens, 0)
        else:
            leases.release(key)
        held = leases.held.values()
        assert leases.tokens == sum(lease.tokens for lease in held) <= LIMITS.total
        assert all(lease.tokens <= LIMITS.program for lease in held)
        for name, total in leases.tenants.items():
            assert total == sum(lease.tokens for lease in held if lease.tenant == name) <= LIMITS.tenant
