"""One site's part: what it seals, and the sums that a member refuses, each by its name."""

import dataclasses

import numpy as np
import pytest
from small_config import small_config

from client.privacy.account import Account
from client.privacy.budget import DataSet
from client.privacy.node_policy import NodePolicy
from client.privacy.noisy_numbers import NoisyNumbers
from client.privacy.site_privacy import SitePrivacy
from client.privacy.site_secret import load_secret
from client.sealed.answers import ANSWERS_FILE, AnswerStore
from client.sealed.identity import SealingIdentity, site_key
from client.sealed.sealed_site import SealedSite, answer_sum, open_sealed
from shared.base.errors import BudgetError, PolicyError
from shared.protocol.messages import Request
from shared.protocol.sealed_messages import CohortSite, SumRequest
from shared.protocol.site_id import site_of
from shared.sealed.boxes import public_bytes
from shared.sealed.committee import Committee, Roster
from shared.sealed.field import to_integers
from shared.sealed.shamir import combine

RUN, DIGEST, CODE = b"r" * 16, b"d" * 16, b"c" * 16
SITES = [site_of({"site": f"ward-{k}"}) for k in range(4)]
SECRETS = {site: bytes([k + 1]) * 32 for k, site in enumerate(SITES)}
KEYS = {site: site_key(SECRETS[site], site) for site in SITES}
ROSTER = Roster({site: public_bytes(KEYS[site]) for site in SITES})
STEPS = {site: np.array([k, -(10**k)]) for k, site in enumerate(SITES)}


class Federation:
    """Four sites with rosters of all four, without data: what is measured is given."""

    def __init__(self, folder, **policy):
        self.folder, self.policy = folder, NodePolicy(**policy)
        self.config = small_config(
            folder, privacy="shared", privacy_noise=1.0, privacy_clip=40.0, privacy_committee=3
        )
        self.sites = {site: self.open(site) for site in SITES}

    def open(self, site, roster=ROSTER):
        home = self.folder / site.name
        data = DataSet(0, site.name, "", "example", 6)
        account = Account.open(site.name, home, data, self.policy, self.config)
        noisy = NoisyNumbers(None, self.config, account, SECRETS[site])
        return SealedSite(SealingIdentity(site, KEYS[site], roster), noisy, AnswerStore(home))

    def seal(self, site, round_=1, attempt=0, name=b"n" * 32, steps=None):
        sealed = self.sites[site]
        request = Request(round_, 0.1, DIGEST, RUN, CODE, attempt=attempt)
        committee = sealed.identity.committee(RUN, self.config)
        return sealed.seal(
            request, DIGEST, name, STEPS[site] if steps is None else steps, committee
        )

    def sum_request(self, member, replies, round_=1, attempt=0, **more):
        """The request to a member for the sum of replies by site."""
        cohort = [CohortSite(site.slot, 0, reply.request) for site, reply in replies.items()]
        boxes = [reply.boxes[member.slot] for reply in replies.values()]
        request = SumRequest(round_, attempt, 2, 1, DIGEST, RUN, CODE, cohort, boxes)
        return dataclasses.replace(request, **more)

    @property
    def members(self):
        slots = self.sites[SITES[0]].identity.committee(RUN, self.config).slots
        return [ROSTER.by_slot[slot] for slot in slots]


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


@pytest.fixture
def replies(federation):
    return {site: federation.seal(site) for site in SITES}


def add_up(federation, member, replies, **more):
    return federation.sites[member].add_up(federation.sum_request(member, replies, **more))


def test_the_members_sums_open_to_the_sum_of_all(federation, replies):
    sums = {m.slot: add_up(federation, m, replies).sums[0] for m in federation.members}
    opened = combine(sums, replies[SITES[0]].needed)
    assert to_integers(opened.vector).tolist() == sum(STEPS.values()).tolist()


def test_a_repeated_request_gets_the_same_bytes_and_any_other_fresh_ones(federation):
    site = SITES[0]
    first = federation.seal(site)
    assert federation.seal(site) == first
    federation.sites[site] = federation.open(site)  # a process that was started again
    assert federation.seal(site) == first
    others = [
        federation.seal(site, name=b"m" * 32),  # other parameters, settings, code
        federation.seal(site, steps=STEPS[site] + 1),  # other numbers for the same request
    ]
    for other in others:
        assert other.request != first.request
        for slot, box in other.boxes.items():
            assert box != first.boxes[slot]
    boxes = {box for reply in (first, *others) for box in reply.boxes.values()}
    assert len(boxes) == 9


def test_shares_of_two_answers_differ_by_more_than_the_numbers_do(federation):
    """Were the polynomial the same, the shares' difference would be that of the numbers."""
    member, site = federation.members[0], SITES[0]
    sums = [
        federation.sites[member]._open(
            federation.sum_request(member, {site: reply}),
            federation.sites[member].identity.committee(RUN, federation.config),
            CohortSite(site.slot, 0, reply.request),
            reply.boxes[member.slot],
        )
        for reply in (federation.seal(site), federation.seal(site, steps=STEPS[site] + 1))
    ]
    assert to_integers(sums[1] - sums[0]).tolist() != [1, 1]


@pytest.fixture
def refusal(caplog):
    """Asserts that something is refused by a key alone, and says what the site's log has."""

    def check(key, text, act):
        with pytest.raises(PolicyError, match=f"^refused by policy: {key}$"):
            act()
        assert text in caplog.text

    return check


def test_a_member_adds_up_one_cohort_of_an_attempt_and_the_same_one_again(
    federation, replies, refusal
):
    member = federation.members[0]
    first = add_up(federation, member, replies)
    again = dict(reversed(replies.items()))  # in any order
    assert add_up(federation, member, again).sums.tolist() == first.sums.tolist()
    three = {site: replies[site] for site in SITES[:3]}
    split = "round 1, attempt 0: another cohort was added up"
    refusal("one-cohort", split, lambda: add_up(federation, member, three))
    federation.sites[member] = federation.open(member)  # killed, and started again
    refusal("one-cohort", split, lambda: add_up(federation, member, three))
    assert add_up(federation, member, replies).sums.tolist() == first.sums.tolist()


def test_the_same_sites_at_other_parameters_are_another_cohort(federation, replies, refusal):
    """A server asks one site twice, at two θ, and mixes the answers: a difference would show."""
    member = federation.members[0]
    add_up(federation, member, replies)
    mixed = {**replies, SITES[0]: federation.seal(SITES[0], name=b"other parameters".ljust(32))}
    refusal("one-cohort", "another cohort", lambda: add_up(federation, member, mixed))


def test_another_attempt_is_added_up_beside_the_first(federation, replies):
    member = federation.members[0]
    add_up(federation, member, replies)
    second = {site: federation.seal(site, attempt=1, name=b"a" * 32) for site in SITES[:3]}
    assert add_up(federation, member, second, attempt=1).attempt == 1


def test_a_cohort_below_the_policys_is_refused(federation, replies, refusal):
    two = {site: replies[site] for site in SITES[:2]}
    act = lambda: add_up(federation, federation.members[0], two)  # noqa: E731
    refusal("min-cohort", "3 sites expected, got 2", act)


def test_parts_that_the_run_does_not_have_are_refused(federation, replies, refusal):
    request = federation.sum_request(federation.members[0], replies)
    cohort = [dataclasses.replace(s, part=k % 2) for k, s in enumerate(request.cohort)]
    request = dataclasses.replace(request, parts=2, cohort=cohort)
    act = lambda: federation.sites[federation.members[0]].add_up(request)  # noqa: E731
    refusal("privacy-parts", "1 parts expected, got 2", act)


def test_a_site_that_is_in_no_roster_is_refused(federation, replies, refusal):
    """Sybils: the server fills a cohort with sites of its own."""
    member = federation.members[0]
    sybil = site_of({"site": "sybil"})
    with_sybil = {**replies, sybil: replies[SITES[0]]}
    refusal("roster", f"sites of slots [{sybil.slot}] are not in it",
            lambda: add_up(federation, member, with_sybil))  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"round_": 2}, {"attempt": 1}, {"digest": b"e" * 16}, {"numbers": 3}], ids=str
)
def test_boxes_for_anything_else_do_not_open(federation, replies, refusal, change):
    member = federation.members[0]
    act = lambda: add_up(federation, member, replies, **change)  # noqa: E731
    refusal("sealed-box", "it does not open here", act)


def test_boxes_of_other_rosters_do_not_open(federation, replies, refusal):
    """A site that accepts a stranger draws its shares for another federation."""
    wider = Roster({**ROSTER.keys, site_of({"site": "x"}): b"x" * 32})
    federation.sites[SITES[1]] = federation.open(SITES[1], wider)
    other = federation.seal(SITES[1])
    assert other.committee != replies[SITES[1]].committee
    member = next(each for each in federation.members if each.slot in other.boxes)
    mixed = {**replies, SITES[1]: other}
    refusal("sealed-box", "does not open", lambda: add_up(federation, member, mixed))


def test_a_site_outside_the_committee_adds_up_nothing(federation, replies, refusal):
    (outside,) = set(SITES) - set(federation.members)
    request = federation.sum_request(federation.members[0], replies)
    refusal("committee", "not in its committee", lambda: federation.sites[outside].add_up(request))


def test_a_run_without_sealed_sums_adds_up_nothing(refusal, federation, replies):
    request = federation.sum_request(federation.members[0], replies)
    refusal("committee", "the run has no sealed sums", lambda: answer_sum(None, request))


def test_too_many_colluders_for_the_roster_are_refused(federation, refusal):
    sealed = federation.sites[SITES[0]]
    config = federation.config.replace(privacy_committee=0, privacy_colluders=3)
    refusal("roster", "privacy-colluders = 3 of a committee of 3",
            lambda: sealed.identity.committee(RUN, config))  # fmt: skip


def write_roster(path, roster):
    lines = "".join(f'"{site.name}" = "{key.hex()}"\n' for site, key in roster.items())
    path.write_text(f"[sites]\n{lines}")
    return str(path)


def open_site(federation, folder, roster, simulated=0):
    policy = NodePolicy(roster=roster, privacy_home=str(folder))
    noisy = dataclasses.replace(federation.sites[SITES[0]].noisy, secret=SECRETS[SITES[0]])
    privacy = SitePrivacy(policy, federation.config, noisy.account, noisy)
    return open_sealed(SITES[0], policy, simulated, privacy)


def test_a_site_opens_with_the_roster_of_its_node(federation, tmp_path):
    file = write_roster(tmp_path / "roster.toml", ROSTER.keys)
    sealed = open_site(federation, tmp_path, file)
    assert sealed.identity.roster == ROSTER
    assert public_bytes(sealed.identity.key) == ROSTER.keys[SITES[0]]


def test_a_site_without_a_sound_roster_sends_nothing(federation, tmp_path, refusal):
    def without(site):
        return {s: key for s, key in ROSTER.keys.items() if s != site}

    mine = write_roster(tmp_path / "mine.toml", without(SITES[0]))
    stolen = write_roster(tmp_path / "stolen.toml", {**ROSTER.keys, SITES[0]: b"k" * 32})
    for file, text in (
        ("", "has data of its own: sealed sums need a roster"),
        (str(tmp_path / "none.toml"), "FileNotFoundError"),
        (mine, "of site ward-0 expected, as 'dandelion client key' prints it"),
        (stolen, "of site ward-0 expected, as 'dandelion client key' prints it"),
    ):
        refusal("roster", text, lambda file=file: open_site(federation, tmp_path, file))


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"num_clients": 5, "privacy_committee": 5}, "roster", "a roster of at least 5 sites"),
        ({"num_clients": 3}, "min-cohort", "4 sites expected in each of 1 sums, of 3"),
        ({"num_clients": 9, "clients_per_round": 3}, "min-cohort", "in each of 1 sums, of 3"),
        ({"num_clients": 9, "privacy_parts": 3}, "min-cohort", "in each of 3 sums, of 9"),
    ],
)
def test_a_run_that_it_would_never_add_up_is_refused_before_it_measures(
    federation, tmp_path, refusal, changes, key, text
):  # fmt: skip
    """An unknown member's roster, and too small a cohort: nothing is sealed or paid for."""
    settings = {"privacy": "shared", "privacy_noise": 1.0, "privacy_clip": 40.0, **changes}
    config = small_config(tmp_path, **settings)
    refusal(key, text, lambda: federation.sites[SITES[0]].identity.check_run(config, 4))


def test_a_store_that_cannot_be_used_is_refused(federation, tmp_path, refusal):
    file = write_roster(tmp_path / "roster.toml", ROSTER.keys)
    home = tmp_path / "home"
    home.mkdir()
    (home / ANSWERS_FILE).write_bytes(b"no database" * 100)
    refusal("budget", "cannot be used", lambda: open_site(federation, home, file))
    with pytest.raises(BudgetError, match=f"{ANSWERS_FILE}: cannot be used"):
        AnswerStore(home)


def test_answers_are_their_owners_alone(tmp_path):
    AnswerStore(tmp_path / "home")
    assert (tmp_path / "home" / ANSWERS_FILE).stat().st_mode & 0o077 == 0


def test_the_committee_is_the_same_at_every_site(federation):
    drawn = {site.identity.committee(RUN, federation.config) for site in federation.sites.values()}
    assert drawn == {Committee.draw(ROSTER, RUN, 3, 1)}


def test_a_secret_gives_each_site_a_key_of_its_own(tmp_path):
    secret = load_secret(tmp_path / "home")
    keys = {public_bytes(site_key(secret, site)) for site in SITES}
    assert len(keys) == 4
