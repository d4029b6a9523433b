//! What the traffic's client knows to be true of its tokens: told by the service, and acknowledged.
//!
//! One request at a time is under way for a grant, so that what it should be answered is never in doubt. A
//! grant whose request was not answered as it should be is set aside: nothing is known of it any more.

use super::dataset::{Dataset, Preloaded};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashSet;

/// So many of a hundred requests of the mix change something; they come first in it.
const WRITES: u32 = 47;

/// A request of the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// New tokens for a person.
    Issue {
        /// The application.
        client: String,
        /// The person.
        subject: String,
        /// A claim that introspection must give back.
        tenant: String,
    },
    /// Whether an access token is good.
    Introspect {
        /// The token.
        token: String,
        /// What the answer must be.
        expect: Expect,
    },
    /// New tokens for a refresh token.
    Refresh {
        /// The token.
        token: String,
        /// Whether it must be accepted.
        accept: bool,
    },
    /// Take a grant back.
    Revoke {
        /// One of its tokens.
        token: String,
    },
}

impl Ask {
    /// Whether it changes something, and so may be held during a cutover.
    #[must_use]
    pub fn writes(&self) -> bool {
        !matches!(self, Ask::Introspect { .. })
    }
}

/// What must be true of an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// It is good.
    Active {
        /// Whose it is.
        subject: String,
        /// The claim.
        tenant: String,
    },
    /// It was revoked, or replaced by a refresh.
    Inactive,
}

/// An answer, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// New tokens.
    Tokens {
        /// The access token.
        access: String,
        /// The refresh token.
        refresh: String,
    },
    /// What introspection says.
    Seen {
        /// Whether the token is good.
        active: bool,
        /// Whether the service knows it.
        known: bool,
        /// Whose it is.
        subject: Option<String>,
        /// The claim.
        tenant: Option<String>,
    },
    /// The refresh token is not good.
    Refused,
    /// Taken back.
    Revoked,
    /// No answer that means anything.
    Broken(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Active,
    Revoked,
    /// Something went wrong; nothing is known.
    Unknown,
}

#[derive(Debug)]
struct Grant {
    access: String,
    refresh: Option<String>,
    /// The pair that a refresh replaced.
    replaced: Option<(String, String)>,
    subject: String,
    tenant: String,
    state: State,
    busy: bool,
}

/// A request under way.
#[derive(Debug)]
pub struct Job {
    /// What to ask.
    pub ask: Ask,
    grant: Option<usize>,
}

/// How an answer compares with what is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// As it should be.
    Right,
    /// A failed request.
    Wrong {
        /// Why.
        why: String,
        /// Whether a token was accepted that was revoked or replaced.
        honoured: bool,
    },
}

/// The client's books.
#[derive(Debug)]
pub struct Ledger {
    data: Dataset,
    rng: StdRng,
    grants: Vec<Grant>,
    /// Indexes of grants that were revoked, oldest first.
    revoked: Vec<usize>,
    taken: HashSet<u64>,
    revocations: u64,
    issued: Vec<String>,
    replaced: Vec<String>,
}

impl Ledger {
    /// Books over what is in blue already; the same seed asks for the same things.
    #[must_use]
    pub fn new(data: Dataset, seed: u64) -> Self {
        Ledger {
            data,
            rng: StdRng::seed_from_u64(seed),
            grants: Vec::new(),
            revoked: Vec::new(),
            taken: HashSet::new(),
            revocations: 0,
            issued: Vec::new(),
            replaced: Vec::new(),
        }
    }

    /// Revocations that the service acknowledged.
    #[must_use]
    pub fn revocations(&self) -> u64 {
        self.revocations
    }

    /// Both tokens of every acknowledged revocation, and those that acknowledged refreshes replaced: none of
    /// them may ever be accepted again.
    #[must_use]
    pub fn dead_tokens(&self) -> Vec<String> {
        let revoked = self.revoked.iter().filter_map(|i| self.grants.get(*i));
        let revoked = revoked.flat_map(|g| std::iter::once(g.access.clone()).chain(g.refresh.clone()));
        revoked.chain(self.replaced.iter().cloned()).collect()
    }

    /// Every token that the service said it had issued.
    #[must_use]
    pub fn issued_tokens(&self) -> &[String] {
        &self.issued
    }

    /// The next request of the mix: half looks, the rest issues, revokes and refreshes.
    pub fn draw(&mut self) -> Job {
        let place = self.rng.random_range(0..100);
        self.at(place)
    }

    /// The next request of those of the mix that change something.
    pub fn draw_write(&mut self) -> Job {
        let place = self.rng.random_range(0..WRITES);
        self.at(place)
    }

    /// What stands at this place of the mix, of a hundred.
    fn at(&mut self, place: u32) -> Job {
        match place {
            0..22 => self.issue(),
            22..37 => self.on_active(|grant, _| Some(Ask::Revoke { token: grant.access.clone() })),
            37..WRITES => {
                self.on_active(|grant, _| Some(Ask::Refresh { token: grant.refresh.clone()?, accept: true }))
            }
            WRITES..50 => self
                .on_revoked(|grant, _| Some(Ask::Refresh { token: grant.refresh.clone()?, accept: false })),
            50..70 => self.on_revoked(|grant, _| {
                Some(Ask::Introspect { token: grant.access.clone(), expect: Expect::Inactive })
            }),
            _ => self.on_active(|grant, rng| {
                Some(match &grant.replaced {
                    Some((old, _)) if rng.random_bool(0.3) => {
                        Ask::Introspect { token: old.clone(), expect: Expect::Inactive }
                    }
                    _ => Ask::Introspect {
                        token: grant.access.clone(),
                        expect: Expect::Active {
                            subject: grant.subject.clone(),
                            tenant: grant.tenant.clone(),
                        },
                    },
                })
            }),
        }
    }

    fn issue(&mut self) -> Job {
        let client = format!("client-{}", self.rng.random_range(0..self.data.clients()));
        let subject = format!("user-{}", self.rng.random_range(0..self.data.subjects()));
        let tenant = format!("tenant-{}", self.rng.random_range(0..97_u32));
        Job { ask: Ask::Issue { client, subject, tenant }, grant: None }
    }

    /// About a grant that is good: one of ours, or one that was there before.
    fn on_active(&mut self, ask: impl Fn(&Grant, &mut StdRng) -> Option<Ask>) -> Job {
        for _ in 0..20 {
            let index = if self.grants.is_empty() || self.rng.random_bool(0.4) {
                match self.adopt() {
                    Some(index) => index,
                    None => continue,
                }
            } else {
                // Younger ones more often: they are those that a migration under way has to carry over.
                let n = self.grants.len();
                let young = if self.rng.random_bool(0.5) { n.saturating_sub(500) } else { 0 };
                self.rng.random_range(young..n)
            };
            if let Some(job) = self.take(index, State::Active, &ask) {
                return job;
            }
        }
        self.issue()
    }

    fn on_revoked(&mut self, ask: impl Fn(&Grant, &mut StdRng) -> Option<Ask>) -> Job {
        for _ in 0..20 {
            let n = self.revoked.len();
            if n == 0 {
                break;
            }
            let young = if self.rng.random_bool(0.5) { n.saturating_sub(100) } else { 0 };
            let index = self.revoked[self.rng.random_range(young..n)];
            if let Some(job) = self.take(index, State::Revoked, &ask) {
                return job;
            }
        }
        self.issue()
    }

    fn take(
        &mut self,
        index: usize,
        state: State,
        ask: impl Fn(&Grant, &mut StdRng) -> Option<Ask>,
    ) -> Option<Job> {
        let grant = self.grants.get_mut(index)?;
        if grant.busy || grant.state != state {
            return None;
        }
        let ask = ask(grant, &mut self.rng)?;
        grant.busy = true;
        Some(Job { ask, grant: Some(index) })
    }

    /// Takes a token into the books that was in blue before.
    fn adopt(&mut self) -> Option<usize> {
        let number = self.rng.random_range(0..self.data.rows);
        let Preloaded { access, refresh, subject, tenant } = self.data.token(number)?;
        if !self.taken.insert(number) {
            return None;
        }
        self.grants.push(Grant {
            access,
            refresh,
            replaced: None,
            subject,
            tenant,
            state: State::Active,
            busy: false,
        });
        Some(self.grants.len() - 1)
    }

    /// Compares an answer with what is true, and writes what it changes into the books.
    pub fn judge(&mut self, job: Job, reply: Reply) -> Judgement {
        if let Some(grant) = job.grant.and_then(|i| self.grants.get_mut(i)) {
            grant.busy = false;
        }
        let judgement = self.verdict(&job, reply);
        if judgement != Judgement::Right
            && job.ask.writes()
            && let Some(grant) = job.grant.and_then(|i| self.grants.get_mut(i))
            && grant.state == State::Active
        {
            grant.state = State::Unknown;
        }
        judgement
    }

    fn verdict(&mut self, job: &Job, reply: Reply) -> Judgement {
        let wrong = |why: String, honoured| Judgement::Wrong { why, honoured };
        let grant = job.grant.and_then(|i| Some((i, self.grants.get_mut(i)?)));
        match (&job.ask, reply, grant) {
            (_, Reply::Broken(why), _) => wrong(why, false),
            (Ask::Issue { subject, tenant, .. }, Reply::Tokens { access, refresh }, _) => {
                self.issued.extend([access.clone(), refresh.clone()]);
                self.grants.push(Grant {
                    access,
                    refresh: Some(refresh),
                    replaced: None,
                    subject: subject.clone(),
                    tenant: tenant.clone(),
                    state: State::Active,
                    busy: false,
                });
                Judgement::Right
            }
            (Ask::Introspect { expect, .. }, Reply::Seen { active, known, subject, tenant }, _) => {
                match expect {
                    Expect::Active { .. } if !known => wrong("a good token is unknown".into(), false),
                    Expect::Active { .. } if !active => {
                        wrong("a good token is called inactive".into(), false)
                    }
                    Expect::Active { subject: s, .. } if subject.as_ref() != Some(s) => {
                        wrong(format!("a token of {s} is said to belong to {subject:?}"), false)
                    }
                    Expect::Active { tenant: t, .. } if tenant.as_ref() != Some(t) => {
                        wrong(format!("a token of {t} has the claim {tenant:?}"), false)
                    }
                    Expect::Inactive if active => wrong("a revoked token is accepted".into(), true),
                    _ => Judgement::Right,
                }
            }
            (Ask::Refresh { accept: true, .. }, Reply::Tokens { access, refresh }, Some((_, grant))) => {
                self.issued.extend([access.clone(), refresh.clone()]);
                let old_access = std::mem::replace(&mut grant.access, access);
                let old_refresh = grant.refresh.replace(refresh).unwrap_or_default();
                self.replaced.extend([old_access.clone(), old_refresh.clone()]);
                grant.replaced = Some((old_access, old_refresh));
                Judgement::Right
            }
            (Ask::Refresh { accept: true, .. }, Reply::Refused, _) => {
                wrong("a good refresh token is refused".into(), false)
            }
            (Ask::Refresh { accept: false, .. }, Reply::Refused, _) => Judgement::Right,
            (Ask::Refresh { accept: false, .. }, Reply::Tokens { .. }, _) => {
                wrong("a revoked refresh token is accepted".into(), true)
            }
            (Ask::Revoke { .. }, Reply::Revoked, Some((index, grant))) => {
                grant.state = State::Revoked;
                self.revoked.push(index);
                self.revocations += 1;
                Judgement::Right
            }
            (_, reply, _) => wrong(format!("an answer that makes no sense: {reply:?}"), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> Ledger {
        Ledger::new(Dataset::new(1000), 1)
    }

    fn issued(ledger: &mut Ledger) {
        let job = ledger.issue();
        let reply = Reply::Tokens { access: "a".into(), refresh: "r".into() };
        assert_eq!(ledger.judge(job, reply), Judgement::Right);
    }

    fn seen(active: bool) -> Reply {
        Reply::Seen { active, known: true, subject: Some("user".into()), tenant: Some("t".into()) }
    }

    #[test]
    fn a_revoked_token_that_is_accepted_is_a_failure_and_honoured() {
        let mut ledger = books();
        issued(&mut ledger);
        let job =
            ledger.take(0, State::Active, |g, _| Some(Ask::Revoke { token: g.access.clone() })).unwrap();
        assert_eq!(ledger.judge(job, Reply::Revoked), Judgement::Right);
        assert_eq!(ledger.revocations(), 1);
        assert_eq!(ledger.dead_tokens(), ["a", "r"]);
        let look = |g: &Grant, _: &mut StdRng| {
            Some(Ask::Introspect { token: g.access.clone(), expect: Expect::Inactive })
        };
        let job = ledger.take(0, State::Revoked, look).unwrap();
        assert!(matches!(ledger.judge(job, seen(true)), Judgement::Wrong { honoured: true, .. }));
        let job = ledger.take(0, State::Revoked, look).unwrap();
        assert_eq!(ledger.judge(job, seen(false)), Judgement::Right);
        let again =
            |g: &Grant, _: &mut StdRng| Some(Ask::Refresh { token: g.refresh.clone()?, accept: false });
        let job = ledger.take(0, State::Revoked, again).unwrap();
        let reply = Reply::Tokens { access: "x".into(), refresh: "y".into() };
        assert!(matches!(ledger.judge(job, reply), Judgement::Wrong { honoured: true, .. }));
    }

    #[test]
    fn a_refresh_replaces_both_tokens() {
        let mut ledger = books();
        issued(&mut ledger);
        let ask = |g: &Grant, _: &mut StdRng| Some(Ask::Refresh { token: g.refresh.clone()?, accept: true });
        let job = ledger.take(0, State::Active, ask).unwrap();
        assert!(ledger.take(0, State::Active, ask).is_none(), "one request at a time");
        let reply = Reply::Tokens { access: "a2".into(), refresh: "r2".into() };
        assert_eq!(ledger.judge(job, reply), Judgement::Right);
        assert_eq!(ledger.dead_tokens(), ["a", "r"]);
        assert_eq!(ledger.issued_tokens(), ["a", "r", "a2", "r2"]);
        let job = ledger.take(0, State::Active, ask).unwrap();
        assert_eq!(job.ask, Ask::Refresh { token: "r2".into(), accept: true });
        assert!(matches!(ledger.judge(job, Reply::Refused), Judgement::Wrong { honoured: false, .. }));
        assert!(ledger.take(0, State::Active, ask).is_none(), "nothing is known of it any more");
    }

    #[test]
    fn a_good_token_must_be_known_active_and_whole() {
        let mut ledger = books();
        issued(&mut ledger);
        let expect = Expect::Active { subject: "user".into(), tenant: "t".into() };
        for (reply, right) in [
            (seen(true), true),
            (seen(false), false),
            (Reply::Seen { active: false, known: false, subject: None, tenant: None }, false),
            (
                Reply::Seen {
                    active: true,
                    known: true,
                    subject: Some("other".into()),
                    tenant: Some("t".into()),
                },
                false,
            ),
            (Reply::Seen { active: true, known: true, subject: Some("user".into()), tenant: None }, false),
            (Reply::Broken("cut off".into()), false),
        ] {
            let ask = |g: &Grant, _: &mut StdRng| {
                Some(Ask::Introspect { token: g.access.clone(), expect: expect.clone() })
            };
            let job = ledger.take(0, State::Active, ask).unwrap();
            assert_eq!(ledger.judge(job, reply) == Judgement::Right, right);
        }
    }

    #[test]
    fn the_mix_holds_all_four_requests_and_the_same_seed_gives_the_same() {
        let mut kinds = [0_u32; 4];
        let (mut a, mut b) = (books(), books());
        for i in 0..2000 {
            let job = a.draw();
            assert_eq!(job.ask, b.draw().ask);
            let (kind, reply) = match &job.ask {
                Ask::Issue { .. } => (0, Reply::Tokens { access: format!("a{i}"), refresh: format!("r{i}") }),
                Ask::Introspect { .. } => (1, seen(false)),
                Ask::Refresh { accept: true, .. } => {
                    (2, Reply::Tokens { access: format!("a{i}"), refresh: format!("r{i}") })
                }
                Ask::Refresh { .. } => (2, Reply::Refused),
                Ask::Revoke { .. } => (3, Reply::Revoked),
            };
            kinds[kind] += 1;
            b.judge(Job { ask: job.ask.clone(), grant: job.grant }, reply.clone());
            a.judge(job, reply);
        }
        assert!(kinds.iter().all(|n| *n > 100), "{kinds:?}");
        assert!((0..500).all(|_| a.draw_write().ask.writes()));
    }
}
